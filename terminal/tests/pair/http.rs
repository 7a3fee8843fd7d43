//! An HTTP client over the connector.

use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use isthmus_terminal::{Code, MediatorConnector};

use crate::relay::{Options, PAGE, REFUSE, Relay};

#[tokio::test]
async fn a_client_gets_pages_over_one_kept_connection_and_a_refusal_as_an_error() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let connector = MediatorConnector::new(mediator.clone());
    let client = Client::builder(TokioExecutor::new()).build::<_, Empty<&[u8]>>(connector);
    for _ in 0..3 {
        let answer = client.get(format!("http://10.0.0.5:{PAGE}/").parse().unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hello");
    }
    assert_eq!(mediator.stats().ports, 1, "it was kept for the next request");
    let refused = format!("http://10.0.0.5:{}/", REFUSE + Code::Denied as u16).parse().unwrap();
    let error = client.get(refused).await.unwrap_err();
    assert!(error.is_connect());
    let error = client.get("http://name/".parse().unwrap()).await.unwrap_err();
    assert!(format!("{error:?}").contains("no IP address"), "{error:?}");
    drop((client, mediator));
    relay.expect(crate::relay::Seen::Gone).await;
}
