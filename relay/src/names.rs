//! Names that lead to mediators: the table in which a visitor's server name or Host is looked up, once a connection.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use isthmus_proto::MediatorId;
use isthmus_proto::door::name::HostName;
use serde::{Deserialize, Serialize};

use crate::upstream::{Options, mediators};

/// Which names a route is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// `www.example.net`: this one.
    Name(HostName),
    /// `*.example.net`: those of one label more.
    Below(HostName),
}

impl Pattern {
    /// Whether it is for this name.
    pub fn covers(&self, name: &HostName) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Below(parent) => name.split_label().1 == parent.as_str(),
        }
    }
}

impl FromStr for Pattern {
    type Err = BadNameRoute;
    fn from_str(text: &str) -> Result<Self, BadNameRoute> {
        let (name, pattern): (&str, fn(HostName) -> Self) = match text.strip_prefix("*.") {
            Some(rest) => (rest, Self::Below),
            None => (text, Self::Name),
        };
        name.parse().map(pattern).map_err(|error| {
            let cure =
                if text.is_ascii() { "" } else { " (international names are written in their ASCII form, xn--...)" };
            BadNameRoute(format!("'{text}': {error}{cure}"))
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{name}"),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

/// Whose private network a name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toward {
    /// `*`: the mediator that the name's first label names, in lower case as all of the name is.
    Label,
    /// These share the visitors.
    Mediators(Vec<MediatorId>),
}

/// A named route, written `PATTERN=MEDIATOR[|MEDIATOR]...[/HOST:PORT][,proxy=v1|,proxy=v2]`:
/// `www.example.net=cpe-1|cpe-2/10.0.0.5:443`, `*.example.net=*/127.0.0.1:443`, `*.example.net=*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NameRoute {
    /// Which names.
    pub pattern: Pattern,
    /// To whom.
    pub toward: Toward,
    /// To which host there; `None` for the one that the mediator itself offers under the name.
    pub target: Option<SocketAddr>,
    /// How.
    pub options: Options,
}

/// The text is not a named route; the message says which part, and how to write it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}; write NAME=MEDIATOR/HOST:PORT, as in www.example.net=cpe-1/10.0.0.5:443, or '*.example.net=*/127.0.0.1:443' for the \
     mediator that the label in place of * names; without /HOST:PORT the mediator's own --offer decides"
)]
pub struct BadNameRoute(String);

impl NameRoute {
    /// The route of a name that a mediator asked for: to the host that it offers under it.
    pub fn asked(name: HostName, mediator: MediatorId) -> Self {
        let toward = Toward::Mediators(vec![mediator]);
        Self { pattern: Pattern::Name(name), toward, target: None, options: Options::default() }
    }
}

impl FromStr for NameRoute {
    type Err = BadNameRoute;
    fn from_str(text: &str) -> Result<Self, BadNameRoute> {
        let (pattern, back) = text.split_once('=').ok_or_else(|| BadNameRoute("there is no '='".into()))?;
        let pattern: Pattern = pattern.trim().parse()?;
        let (back, options) = Options::split(back).map_err(BadNameRoute)?;
        let (toward, target) = match back.split_once('/') {
            Some((toward, target)) => (toward, Some(address(target)?)),
            None => (back, None),
        };
        let toward = match (toward.trim(), &pattern) {
            ("*", Pattern::Below(_)) => Toward::Label,
            ("*", Pattern::Name(_)) => {
                return Err(BadNameRoute("'*' as the mediator needs a name with '*.' in front".into()));
            }
            (ids, _) => Toward::Mediators(mediators(ids).map_err(BadNameRoute)?),
        };
        Ok(Self { pattern, toward, target, options })
    }
}

fn address(text: &str) -> Result<SocketAddr, BadNameRoute> {
    match text.trim().parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => Err(BadNameRoute(format!("'{text}' is not an IP address with a port number"))),
    }
}

impl fmt::Display for NameRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.pattern)?;
        match &self.toward {
            Toward::Label => f.write_str("*")?,
            Toward::Mediators(ids) => {
                for (n, id) in ids.iter().enumerate() {
                    write!(f, "{}{id}", if n == 0 { "" } else { "|" })?;
                }
            }
        }
        if let Some(target) = self.target {
            write!(f, "/{target}")?;
        }
        write!(f, "{}", self.options)
    }
}

impl TryFrom<String> for NameRoute {
    type Error = BadNameRoute;
    fn try_from(text: String) -> Result<Self, BadNameRoute> {
        text.parse()
    }
}

impl From<NameRoute> for String {
    fn from(route: NameRoute) -> Self {
        route.to_string()
    }
}

/// All routes. It does not change: a change makes another one, which the shards then get.
#[derive(Clone, Debug, Default)]
pub struct Names {
    routes: Vec<NameRoute>,
    /// How many of them are operators'; those behind were asked for by mediators.
    operators: usize,
    named: HashMap<Box<str>, usize>,
    below: HashMap<Box<str>, usize>,
}

impl Names {
    /// A table of these routes.
    ///
    /// # Errors
    /// Two of them are for the same names.
    pub fn new(routes: Vec<NameRoute>) -> Result<Self, String> {
        let mut names = Self { operators: routes.len(), routes, ..Self::default() };
        for (number, route) in names.routes.iter().enumerate() {
            let (table, name) = match &route.pattern {
                Pattern::Name(name) => (&mut names.named, name),
                Pattern::Below(name) => (&mut names.below, name),
            };
            if table.insert(name.as_str().into(), number).is_some() {
                return Err(format!("--name gives {} twice", route.pattern));
            }
        }
        Ok(names)
    }

    /// The same with routes that mediators asked for, each for one name: an operator's own one for it goes before.
    pub fn with_asked(mut self, asked: Vec<NameRoute>) -> Self {
        for route in asked {
            if let Pattern::Name(name) = &route.pattern
                && !self.named.contains_key(name.as_str())
            {
                self.named.insert(name.as_str().into(), self.routes.len());
                self.routes.push(route);
            }
        }
        self
    }

    /// Operators' routes, in the order in which they were given.
    pub fn routes(&self) -> &[NameRoute] {
        self.routes.get(..self.operators).unwrap_or_default()
    }

    /// The routes that mediators asked for.
    pub fn asked(&self) -> &[NameRoute] {
        self.routes.get(self.operators..).unwrap_or_default()
    }

    /// Whether an operator gave a route for this very name.
    pub fn has_own(&self, name: &HostName) -> bool {
        self.named.get(name.as_str()).is_some_and(|&number| number < self.operators)
    }

    /// The route for a name, with its place in [`Names::routes`]: its own, or else the one for all of its kind. Two
    /// look-ups at most, however many there are.
    pub fn find(&self, name: &HostName) -> Option<(usize, &NameRoute)> {
        let number = self.named.get(name.as_str()).or_else(|| self.below.get(name.split_label().1))?;
        Some((*number, self.routes.get(*number)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(routes: &[&str]) -> Names {
        Names::new(routes.iter().map(|route| route.parse().unwrap()).collect()).unwrap()
    }

    #[test]
    fn routes_print_as_they_are_written() {
        for text in [
            "www.example.net=cpe-1/10.0.0.5:443",
            "www.example.net=cpe-1|cpe-2/[fd00::5]:443,proxy=v2",
            "*.example.net=*/127.0.0.1:443",
            "*.example.net=*,proxy=v1",
            "*.example.net=cpe-1",
        ] {
            assert_eq!(text.parse::<NameRoute>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn each_bad_part_is_named() {
        for (text, part) in [
            ("www.example.net", "no '='"),
            ("=cpe/10.0.0.1:80", "''"),
            ("*=cpe/10.0.0.1:80", "'*'"),
            ("a.*.b=cpe/10.0.0.1:80", "'a.*.b'"),
            ("bücher.example=cpe/10.0.0.1:80", "xn--"),
            ("www.example.net=*/10.0.0.1:80", "'*' as the mediator"),
            ("www.example.net=-cpe/10.0.0.1:80", "'-cpe'"),
            ("www.example.net=a|a/10.0.0.1:80", "named twice"),
            ("www.example.net=cpe/host:80", "'host:80'"),
            ("www.example.net=cpe/10.0.0.1:0", "'10.0.0.1:0'"),
            ("www.example.net=cpe/10.0.0.1:80,proxy=2", "'proxy=2'"),
        ] {
            let error = text.parse::<NameRoute>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_names_own_route_wins_and_a_star_is_one_label() {
        let names = names(&["*.example.net=a", "www.example.net=b", "example.net=c", "*.x.example.net=d"]);
        let found = |name: &str| names.find(&name.parse().unwrap()).map(|(number, _)| number);
        assert_eq!(found("WWW.example.net."), Some(1));
        assert_eq!(found("device-7.example.net"), Some(0));
        assert_eq!(found("example.net"), Some(2));
        assert_eq!(found("y.x.example.net"), Some(3));
        assert_eq!(found("z.y.x.example.net"), None);
        assert_eq!(found("net"), None);
        assert_eq!(found("example.org"), None);
    }

    #[test]
    fn the_same_names_twice_are_refused() {
        let routes = |texts: [&str; 2]| Names::new(texts.map(|text| text.parse().unwrap()).into()).map(|_| ());
        assert_eq!(routes(["a.b=x", "A.B.=y"]), Err("--name gives a.b twice".into()));
        assert_eq!(routes(["*.b=x", "*.B=y"]), Err("--name gives *.b twice".into()));
        assert_eq!(routes(["*.b=x", "a.b=y"]), Ok(()));
    }
}
