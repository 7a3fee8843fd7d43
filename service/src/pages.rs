//! Completions and man pages, made from the very flags that a program takes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory, Subcommand};
use clap_complete::Shell;

/// What each program offers beside its own subcommands.
#[derive(Clone, Debug, Subcommand)]
pub enum Pages {
    /// Print completions for a shell, as in: source <(isthmus completions bash)
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: Shell,
    },
    /// Write man pages, one for the program and one for each subcommand
    Man {
        /// Where to
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

impl Pages {
    /// Prints or writes what is asked for, of the program that `P` describes.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn run<P: CommandFactory>(&self) -> io::Result<()> {
        let mut command = P::command();
        match self {
            Self::Completions { shell } => {
                match io::stdout().write_all(completions(*shell, &mut command).as_bytes()) {
                    // Nobody reads on, as with `| head`.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                    result => result,
                }
            }
            Self::Man { dir } => man(command, dir),
        }
    }
}

fn completions(shell: Shell, command: &mut Command) -> String {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, command, name.clone(), &mut script);
    let script = String::from_utf8_lossy(&script);
    // For bash, clap_complete takes the `-` of a program's name for a step to a subcommand in the one half of its script, and
    // not in the other, so that a subcommand's flags would not be found.
    script.replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__"))
}

fn man(mut command: Command, dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    // Subcommands get the whole path as their name, which is what their pages are called by.
    command.build();
    let name = command.get_name().to_owned();
    page(command, &name, dir)
}

fn page(command: Command, name: &str, dir: &Path) -> io::Result<()> {
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let of_sub = format!("{name}-{}", sub.get_name());
        page(sub.clone(), &of_sub, dir)?;
    }
    let mut text = Vec::new();
    let title = name.to_uppercase();
    let source = concat!("Isthmus ", env!("CARGO_PKG_VERSION"));
    clap_mangen::Man::new(command).title(title).section("1").source(source).manual("Isthmus").render(&mut text)?;
    std::fs::write(dir.join(format!("{name}.1")), text)
}
