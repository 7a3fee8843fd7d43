//! Sends one datagram to a host in the private network, over a UDP channel, and prints the answer.
//!
//! `cargo run --example udp -- RELAY PIN TOKEN MEDIATOR 10.0.0.5:53 TEXT`

use std::time::Duration;

use isthmus_terminal::{Config, Importance, Mediator, Trust};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [relay, pin, token, mediator, host, text] = args.as_slice() else {
        anyhow::bail!("give RELAY PIN TOKEN MEDIATOR HOST:PORT TEXT");
    };
    let config = Config::new(relay, Trust::pin(pin)?, token);
    let mediator = Mediator::attach(&config, mediator.parse()?).await?;
    let any = "0.0.0.0:0".parse()?;
    let socket = mediator.udp_redirect(any, Importance::Desired, false).await?;
    socket.send_to(text.as_bytes(), host.parse()?).await?;
    let (answer, from) = tokio::time::timeout(Duration::from_secs(5), socket.recv_datagram()).await??;
    println!("{from}: {}", String::from_utf8_lossy(&answer));
    Ok(())
}
