//! `/metrics`: what a server counts, as OpenMetrics text.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use bothways::Server;
use bothways_metrics::{CONTENT_TYPE, Metrics};
use http::{HeaderValue, header};

use crate::{
    body::{Body, Response},
    fault::Fault,
    front::Front,
};

/// Makes the metrics of a server.
#[derive(Clone)]
pub(crate) struct Make(pub(crate) Arc<dyn Fn(&Server) -> Metrics + Send + Sync>);

impl fmt::Debug for Make {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Make")
    }
}

/// Made when somebody first asks.
pub(crate) type Made = OnceLock<Arc<Metrics>>;

/// The answer to `GET /metrics`.
pub(crate) async fn answer(front: &Front) -> Response {
    let (Some(make), Some(server)) = (&front.shared.options.metrics, front.shared.entrance.home.server()) else {
        return Fault::not_found("nothing is served here").into_response();
    };
    let metrics = Arc::clone(front.shared.metrics.get_or_init(|| Arc::new((make.0)(&server))));
    // It looks at all sessions now and then, which takes a while where there are very many.
    match tokio::task::spawn_blocking(move || metrics.encode()).await {
        Err(_) => Fault::overloaded("the metrics could not be written").into_response(),
        Ok(text) => {
            let mut response = http::Response::new(Body::from(text));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
            response
        }
    }
}
