//! An echo server whose port is the mediator's: hosts in the private network connect to it.
//!
//! `cargo run --example listen -- RELAY PIN TOKEN MEDIATOR 0.0.0.0:7000`

use isthmus_terminal::{Config, Importance, Mediator, Trust};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [relay, pin, token, mediator, at] = args.as_slice() else {
        anyhow::bail!("give RELAY PIN TOKEN MEDIATOR IP:PORT");
    };
    let config = Config::new(relay, Trust::pin(pin)?, token);
    let mediator = Mediator::attach(&config, mediator.parse()?).await?;
    let listener = mediator.listen(at.parse()?, Importance::Desired).await?;
    println!("listening on {}", listener.local_addr());
    loop {
        let (mut stream, peer) = listener.accept().await?;
        tokio::spawn(async move {
            let (mut read, mut write) = stream.split();
            match tokio::io::copy(&mut read, &mut write).await {
                Ok(n) => println!("{peer}: {n} bytes"),
                Err(error) => println!("{peer}: {error}"),
            }
            // Dropping an unfinished stream would reset it.
            drop(tokio::io::AsyncWriteExt::shutdown(&mut stream).await);
        });
    }
}
