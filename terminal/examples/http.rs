//! Asks a web server in the private network with hyper's client, over connections that it keeps.
//!
//! `cargo run --features hyper --example http -- RELAY PIN TOKEN MEDIATOR http://10.0.0.5:80/`

use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use isthmus_terminal::{Config, Mediator, MediatorConnector, Trust};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [relay, pin, token, mediator, uri] = args.as_slice() else {
        anyhow::bail!("give RELAY PIN TOKEN MEDIATOR http://HOST:PORT/PATH");
    };
    let config = Config::new(relay, Trust::pin(pin)?, token);
    let mediator = Mediator::attach(&config, mediator.parse()?).await?;
    let connector = MediatorConnector::new(mediator);
    let client = Client::builder(TokioExecutor::new()).build::<_, Empty<&[u8]>>(connector);
    let answer = client.get(uri.parse()?).await?;
    eprintln!("{}", answer.status());
    let page = answer.into_body().collect().await?.to_bytes();
    print!("{}", String::from_utf8_lossy(&page));
    Ok(())
}
