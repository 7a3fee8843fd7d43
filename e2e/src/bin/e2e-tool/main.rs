//! The small programs that end-to-end tests and the quick start run as hosts, services and visitors: std only, so that
//! what is tested is never tested with itself. Servers print `ready ADDRESS` once they listen; clients end with 0 when
//! all was as it should be, and say what was not.

mod ends;
mod http;
mod streams;
mod udp;

use std::process::ExitCode;

use clap::Parser;

/// What a program here may fail with: a sentence.
type Outcome = Result<(), String>;

#[derive(Parser)]
#[command(version, about = "Servers and clients for the end-to-end tests of Isthmus")]
enum Cli {
    /// Answer every datagram with itself
    UdpEcho(udp::Echo),
    /// Send datagrams to an echo server and compare what comes back
    UdpPing(udp::Ping),
    /// Answer every stream with itself; an end is answered with an end
    TcpEcho(ends::Echo),
    /// Send random bytes to an echo server, end, and compare what comes back
    TcpPing(ends::Ping),
    /// Connect, send standard input and print what comes, until both have ended
    Pipe(ends::Pipe),
    /// Answer a whole stream, after its end, with its length and checksum
    HalfCloseServe(ends::HalfCloseServe),
    /// Send, end, and only then read (or the other way round), and compare
    HalfCloseCall(ends::HalfCloseCall),
    /// Accept connections and end each of them in a certain way
    EndServe(ends::EndServe),
    /// Connect and end in a certain way
    EndCall(ends::EndCall),
    /// Serve the files of a directory over HTTP
    Http(http::Http),
    /// Serve verified streams of random bytes, both ways at once
    StreamsServe(streams::Serve),
    /// Run many verified streams at once, some of which stop reading for a while
    StreamsCall(streams::Call),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse() {
        Cli::UdpEcho(args) => udp::echo(&args),
        Cli::UdpPing(args) => udp::ping(&args),
        Cli::TcpEcho(args) => ends::echo(&args),
        Cli::TcpPing(args) => ends::ping(&args),
        Cli::Pipe(args) => ends::pipe(&args),
        Cli::HalfCloseServe(args) => ends::half_close_serve(&args),
        Cli::HalfCloseCall(args) => ends::half_close_call(&args),
        Cli::EndServe(args) => ends::end_serve(&args),
        Cli::EndCall(args) => ends::end_call(&args),
        Cli::Http(args) => http::serve(&args),
        Cli::StreamsServe(args) => streams::serve(&args),
        Cli::StreamsCall(args) => streams::call(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("e2e-tool: {text}");
            ExitCode::FAILURE
        }
    }
}

/// Adds what was being done to an error of the system.
fn during<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}
