//! What the operator looks at, and what the keys do. It knows neither relay nor terminal: keys in, orders out.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::asker::{Order, Want};
use super::column::Column;
use super::model::{Model, Row};
use crate::trust::{BadGlob, Glob};

/// Rows that a page key moves by.
const STEP: usize = 10;

/// What fills the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Screen {
    /// The list of tunnels.
    List,
    /// One tunnel.
    Tunnel(String),
    /// The shards, and what was dropped.
    Shards,
}

/// A question in the last line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Prompt {
    /// A pattern is being written; what it was before comes back with Esc.
    Filter { before: String },
    /// Shall this be done? The command is shown.
    Sure(String),
}

/// What the operator looks at.
#[derive(Debug)]
pub(super) struct Ui {
    pub(super) screen: Screen,
    pub(super) sort: Column,
    pub(super) falling: bool,
    /// As it was written.
    pub(super) filter: String,
    pub(super) prompt: Option<Prompt>,
    pub(super) help: bool,
    /// The mediator that is marked in the list.
    pub(super) selected: Option<String>,
    /// Where it was last, for when it goes.
    selected_at: usize,
    /// Lines above the ones shown of a tunnel.
    pub(super) scrolled: usize,
    /// The picture stands still.
    pub(super) held: bool,
    /// What the last command came to is still to be read; the next key takes it away.
    pub(super) notice: bool,
}

/// What a key leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Another picture, perhaps.
    Redraw,
    /// The end.
    Quit,
    /// Something for the relay.
    Order(Order),
}

/// The pattern that a filter means: without `*` and `?`, every name that holds it.
pub(super) fn glob_of(filter: &str) -> Result<Glob, BadGlob> {
    if filter.is_empty() {
        Ok(Glob::any())
    } else if filter.contains(['*', '?']) {
        filter.parse()
    } else {
        format!("*{filter}*").parse()
    }
}

impl Ui {
    pub(super) fn new(sort: Column, filter: String) -> Self {
        Self {
            screen: Screen::List,
            sort,
            falling: sort.falls(),
            filter,
            prompt: None,
            help: false,
            selected: None,
            selected_at: 0,
            scrolled: 0,
            held: false,
            notice: false,
        }
    }

    /// What the next look shall show.
    pub(super) fn want(&self) -> Want {
        match &self.screen {
            Screen::List => Want::List(glob_of(&self.filter).unwrap_or_else(|_| Glob::any()).to_string()),
            Screen::Tunnel(id) => Want::Tunnel(id.clone()),
            Screen::Shards => Want::Figures,
        }
    }

    /// The rows of the list, in its order: those that pass the filter as it is written now.
    pub(super) fn listed<'a>(&self, model: &'a Model) -> Vec<&'a Row> {
        let glob = glob_of(&self.filter).ok().filter(|glob| *glob != Glob::any());
        let passes = |row: &&Row| {
            let passes = |glob: &Glob| row.tunnel.id.parse().is_ok_and(|id| glob.matches(&id));
            glob.as_ref().is_none_or(passes)
        };
        let mut rows: Vec<&Row> = model.rows.values().filter(passes).collect();
        rows.sort_by(|a, b| {
            let order = match self.sort {
                Column::Id => a.tunnel.id.cmp(&b.tunnel.id),
                column => column.compare(a, b),
            };
            let order = if self.falling { order.reverse() } else { order };
            order.then_with(|| a.tunnel.id.cmp(&b.tunnel.id))
        });
        rows
    }

    /// Where the mark is in the list: with its mediator; if that is gone, where it was.
    pub(super) fn mark(&self, rows: &[&Row]) -> Option<usize> {
        let last = rows.len().checked_sub(1)?;
        let with = self.selected.as_ref().and_then(|id| rows.iter().position(|row| row.tunnel.id == *id));
        Some(with.unwrap_or(self.selected_at).min(last))
    }

    /// Takes a key.
    pub(super) fn key(&mut self, key: KeyEvent, model: &Model) -> Effect {
        if key.kind == KeyEventKind::Release {
            return Effect::Redraw;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Effect::Quit } else { Effect::Redraw };
        }
        self.notice = false;
        if self.help {
            self.help = false;
            return Effect::Redraw;
        }
        match self.prompt.take() {
            Some(Prompt::Sure(command)) => self.answered(key.code, command),
            Some(Prompt::Filter { before }) => self.written(key.code, before),
            None => self.pressed(key.code, model),
        }
    }

    fn answered(&mut self, key: KeyCode, command: String) -> Effect {
        match key {
            KeyCode::Char('y' | 'Y') => {
                self.notice = true;
                Effect::Order(Order::Command(command))
            }
            // Whatever else was meant, it was not a yes.
            _ => Effect::Redraw,
        }
    }

    fn written(&mut self, key: KeyCode, before: String) -> Effect {
        match key {
            KeyCode::Enter => {}
            KeyCode::Esc => self.filter = before,
            KeyCode::Backspace => {
                self.filter.pop();
                self.prompt = Some(Prompt::Filter { before });
            }
            other => {
                if let KeyCode::Char(c) = other {
                    let longer = format!("{}{c}", self.filter);
                    // What no name can hold is not taken.
                    if glob_of(&longer).is_ok() {
                        self.filter = longer;
                    }
                }
                self.prompt = Some(Prompt::Filter { before });
            }
        }
        Effect::Redraw
    }

    fn pressed(&mut self, key: KeyCode, model: &Model) -> Effect {
        match key {
            KeyCode::Char('q') => return Effect::Quit,
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Char(' ') => self.held = !self.held,
            KeyCode::Tab => {
                self.screen = if self.screen == Screen::Shards { Screen::List } else { Screen::Shards };
                self.scrolled = 0;
            }
            KeyCode::Char('k') => self.prompt = self.subject(model).map(|id| Prompt::Sure(format!("kill tunnel {id}"))),
            KeyCode::Char('d') if model.look.knows.drain => {
                let draining = model.look.answers.total.get("draining").is_some_and(|&shards| shards > 0);
                self.prompt = Some(Prompt::Sure(if draining { "undrain" } else { "drain over=1m" }.to_owned()));
            }
            key if self.screen == Screen::List => self.pressed_in_list(key, model),
            KeyCode::Esc | KeyCode::Backspace | KeyCode::Left => self.screen = Screen::List,
            KeyCode::Up => self.scrolled = self.scrolled.saturating_sub(1),
            KeyCode::PageUp => self.scrolled = self.scrolled.saturating_sub(STEP),
            // What is drawn bounds it.
            KeyCode::Down => self.scrolled += 1,
            KeyCode::PageDown => self.scrolled += STEP,
            KeyCode::Home => self.scrolled = 0,
            _ => {}
        }
        Effect::Redraw
    }

    fn pressed_in_list(&mut self, key: KeyCode, model: &Model) {
        match key {
            KeyCode::Char('/') => self.prompt = Some(Prompt::Filter { before: self.filter.clone() }),
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('s' | '>') | KeyCode::Right => self.sort_by(self.sort.neighbour(true)),
            KeyCode::Char('S' | '<') | KeyCode::Left => self.sort_by(self.sort.neighbour(false)),
            KeyCode::Char('r') => self.falling = !self.falling,
            KeyCode::Char('n') => self.sort_by(Column::Id),
            KeyCode::Char('i') => self.sort_by(Column::In),
            KeyCode::Char('o') => self.sort_by(Column::Out),
            KeyCode::Char('a') => self.sort_by(Column::Age),
            KeyCode::Up => self.move_mark(model, |at, _| at.saturating_sub(1)),
            KeyCode::Down => self.move_mark(model, |at, _| at + 1),
            KeyCode::PageUp => self.move_mark(model, |at, _| at.saturating_sub(STEP)),
            KeyCode::PageDown => self.move_mark(model, |at, _| at + STEP),
            KeyCode::Home => self.move_mark(model, |_, _| 0),
            KeyCode::End => self.move_mark(model, |_, last| last),
            KeyCode::Enter => {
                if let Some(id) = self.subject(model) {
                    self.selected = Some(id.clone());
                    self.screen = Screen::Tunnel(id);
                    self.scrolled = 0;
                }
            }
            _ => {}
        }
    }

    fn sort_by(&mut self, column: Column) {
        self.sort = column;
        self.falling = column.falls();
    }

    fn move_mark(&mut self, model: &Model, to: impl Fn(usize, usize) -> usize) {
        let rows = self.listed(model);
        let (Some(at), Some(last)) = (self.mark(&rows), rows.len().checked_sub(1)) else { return };
        let at = to(at, last).min(last);
        (self.selected_at, self.selected) = (at, Some(rows[at].tunnel.id.clone()));
    }

    /// The mediator that `kill` is about: the one that is looked at, or marked.
    fn subject(&self, model: &Model) -> Option<String> {
        match &self.screen {
            Screen::Tunnel(id) => Some(id.clone()),
            Screen::List => {
                let rows = self.listed(model);
                self.mark(&rows).map(|at| rows[at].tunnel.id.clone())
            }
            Screen::Shards => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::model::News;
    use crate::top::testing::{look, tunnel};

    fn model() -> Model {
        let mut model = Model::default();
        let page =
            |grown: u64| vec![tunnel("a", 5 * grown, 0), tunnel("b", grown, 9 * grown), tunnel("c", 0, 2 * grown)];
        model.take(News::Look(Box::new(look(1, &[], page(0)))));
        model.take(News::Look(Box::new(look(2, &[], page(100)))));
        model
    }

    fn ui() -> Ui {
        Ui::new(Column::Out, String::new())
    }

    fn press(ui: &mut Ui, model: &Model, keys: &str) -> Effect {
        let mut effect = Effect::Redraw;
        for key in keys.chars() {
            let code = match key {
                '\n' => KeyCode::Enter,
                '\u{1b}' => KeyCode::Esc,
                '\t' => KeyCode::Tab,
                'v' => KeyCode::Down,
                '^' => KeyCode::Up,
                c => KeyCode::Char(c),
            };
            effect = ui.key(KeyEvent::from(code), model);
        }
        effect
    }

    fn order(ui: &Ui, model: &Model) -> String {
        ui.listed(model).iter().map(|row| row.tunnel.id.as_str()).collect()
    }

    #[test]
    fn list_is_sorted_by_the_column_that_keys_choose_and_both_ways() {
        let (model, mut ui) = (model(), ui());
        assert_eq!(order(&ui, &model), "bca");
        press(&mut ui, &model, "i");
        assert_eq!(order(&ui, &model), "abc");
        press(&mut ui, &model, "r");
        assert_eq!(order(&ui, &model), "cba");
        press(&mut ui, &model, "n");
        assert_eq!((order(&ui, &model).as_str(), ui.falling), ("abc", false));
        press(&mut ui, &model, "s");
        assert_eq!(ui.sort, Column::In);
    }

    #[test]
    fn filter_is_applied_while_it_is_written_and_taken_back_by_escape() {
        let (model, mut ui) = (model(), ui());
        press(&mut ui, &model, "/b");
        assert_eq!(order(&ui, &model), "b");
        assert_eq!(ui.want(), Want::List("*b*".to_owned()));
        press(&mut ui, &model, "\u{1b}");
        assert_eq!((order(&ui, &model).as_str(), ui.want()), ("bca", Want::List("*".to_owned())));
        press(&mut ui, &model, "/[?b;\n");
        assert_eq!((ui.filter.as_str(), ui.prompt.clone()), ("?b", None));
        press(&mut ui, &model, "\u{1b}");
        assert_eq!(ui.filter, "");
    }

    #[test]
    fn kill_is_asked_and_done_only_upon_yes() {
        let (model, mut ui) = (model(), ui());
        assert_eq!(press(&mut ui, &model, "vk"), Effect::Redraw);
        assert_eq!(ui.prompt, Some(Prompt::Sure("kill tunnel c".to_owned())));
        assert_eq!(press(&mut ui, &model, "n"), Effect::Redraw);
        assert_eq!(ui.prompt, None);
        assert_eq!(press(&mut ui, &model, "ky"), Effect::Order(Order::Command("kill tunnel c".to_owned())));
        assert_eq!(press(&mut ui, &model, "ky"), Effect::Order(Order::Command("kill tunnel c".to_owned())));
    }

    #[test]
    fn drain_is_a_key_only_where_the_relay_knows_it() {
        let (mut model, mut ui) = (model(), ui());
        press(&mut ui, &model, "d");
        assert_eq!(ui.prompt, None);
        model.look.knows.drain = true;
        assert_eq!(press(&mut ui, &model, "dy"), Effect::Order(Order::Command("drain over=1m".to_owned())));
        model.look.answers.total.insert("draining".to_owned(), 2);
        assert_eq!(press(&mut ui, &model, "dy"), Effect::Order(Order::Command("undrain".to_owned())));
    }

    #[test]
    fn mark_stays_with_its_mediator_and_falls_back_to_its_place() {
        let (mut model, mut ui) = (model(), ui());
        press(&mut ui, &model, "v");
        assert_eq!(ui.selected.as_deref(), Some("c"));
        press(&mut ui, &model, "n");
        assert_eq!(ui.mark(&ui.listed(&model)), Some(2));
        model.rows.remove("c");
        assert_eq!(ui.mark(&ui.listed(&model)), Some(1));
        model.rows.clear();
        assert_eq!(ui.mark(&ui.listed(&model)), None);
        assert_eq!(press(&mut ui, &model, "kv^\n"), Effect::Redraw);
        assert_eq!(ui.screen, Screen::List);
    }

    #[test]
    fn screens_lead_to_each_other_and_back() {
        let (model, mut ui) = (model(), ui());
        press(&mut ui, &model, "\n");
        assert_eq!((&ui.screen, ui.want()), (&Screen::Tunnel("b".to_owned()), Want::Tunnel("b".to_owned())));
        press(&mut ui, &model, "k");
        assert_eq!(ui.prompt, Some(Prompt::Sure("kill tunnel b".to_owned())));
        press(&mut ui, &model, "n\u{1b}\t");
        assert_eq!((&ui.screen, ui.want()), (&Screen::Shards, Want::Figures));
        press(&mut ui, &model, "k\t?");
        assert_eq!((&ui.screen, ui.help, ui.prompt.as_ref()), (&Screen::List, true, None));
        press(&mut ui, &model, "q");
        assert!(!ui.help);
    }

    #[test]
    fn quit_works_from_everywhere_by_control_c() {
        let (model, mut ui) = (model(), ui());
        assert_eq!(press(&mut ui, &model, "q"), Effect::Quit);
        press(&mut ui, &model, "/q");
        let key = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(ui.filter, "q");
        assert_eq!(ui.key(key, &model), Effect::Quit);
    }
}
