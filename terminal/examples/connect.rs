//! Fetches a page of a web server in the private network.
//!
//! `cargo run --example connect -- RELAY PIN TOKEN MEDIATOR 10.0.0.5:80`

use isthmus_terminal::{Config, Mediator, Trust};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [relay, pin, token, mediator, host] = args.as_slice() else {
        anyhow::bail!("give RELAY PIN TOKEN MEDIATOR HOST:PORT");
    };
    let config = Config::new(relay, Trust::pin(pin)?, token);
    let mediator = Mediator::attach(&config, mediator.parse()?).await?;
    let mut stream = mediator.connect(host.parse()?).await?;
    stream.write_all(format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
    let mut page = Vec::new();
    stream.read_to_end(&mut page).await?;
    print!("{}", String::from_utf8_lossy(&page));
    Ok(())
}
