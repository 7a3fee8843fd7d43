//! What a program owes the system that it is installed on: word to the service manager, man pages, completions.

#![forbid(unsafe_code)]

mod doctor;
pub mod log;
mod notify;
mod pages;

pub use doctor::{Finding, Findings, Severity};
pub use log::LogFormat;
pub use notify::Notifier;
pub use pages::Pages;
