//! Which page is where, and what every answer has in common.

use std::future::Future;
use std::pin::Pin;

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};

use super::body::Body;

/// An answer.
pub type Reply = Response<Body>;

/// A request that has passed the gate; its method is GET or HEAD, which a handler need not tell apart.
#[derive(Debug)]
pub struct Asked {
    /// Address and headers.
    pub parts: Parts,
    /// What the path has beyond that of a route that ends with `*`; as it came, `%` included.
    pub rest: String,
}

impl Asked {
    /// The value of a word in the query, as it came.
    pub fn query(&self, name: &str) -> Option<&str> {
        let pairs = self.parts.uri.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

/// Who may have a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Whoever comes: it tells nothing that a connection to the port does not.
    Open,
    /// Who has the token, where there is one.
    Token,
}

type Answer = Pin<Box<dyn Future<Output = Reply>>>;

/// Makes a page.
type Page = dyn Fn(Asked) -> Answer;

struct Route {
    path: &'static str,
    access: Access,
    page: Box<Page>,
}

/// The pages.
#[derive(Default)]
pub struct Router(Vec<Route>);

impl Router {
    /// Adds a page. A path that ends with `*` is that of all that begin so, and counts less than a whole one.
    #[must_use]
    pub fn page<F>(mut self, path: &'static str, access: Access, page: impl Fn(Asked) -> F + 'static) -> Self
    where
        F: Future<Output = Reply> + 'static,
    {
        self.0.push(Route { path, access, page: Box::new(move |asked| Box::pin(page(asked))) });
        self
    }

    /// The page of a path: who may have it, and a function that makes it.
    pub(super) fn find(&self, path: &str) -> Option<(Access, String, &Page)> {
        let whole = self.0.iter().find(|route| route.path == path).map(|route| (route, ""));
        let begun = || {
            let rest = |route: &Route| route.path.strip_suffix('*').and_then(|begin| path.strip_prefix(begin));
            let fit = self.0.iter().filter_map(|route| rest(route).map(|rest| (route, rest)));
            fit.min_by_key(|(_, rest)| rest.len())
        };
        whole.or_else(begun).map(|(route, rest)| (route.access, rest.to_owned(), &*route.page))
    }
}

/// A plain text, one line or several.
pub fn text(status: StatusCode, text: impl Into<String>) -> Reply {
    reply(status, "text/plain; charset=utf-8", text.into())
}

/// A JSON document.
pub fn json(status: StatusCode, text: String) -> Reply {
    reply(status, "application/json", text)
}

/// A page for browsers. What it may load beyond itself it has to say by a Content-Security-Policy of its own.
pub fn html(text: String) -> Reply {
    reply(StatusCode::OK, "text/html; charset=utf-8", text)
}

fn reply(status: StatusCode, content_type: &'static str, text: String) -> Reply {
    let mut reply = Response::new(Body::from(text));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// What every answer says, unless a handler has said otherwise: nobody embeds it, guesses its type, keeps it or is told of
/// it by a link.
const COMMON: [(HeaderName, &str); 6] = [
    (header::CACHE_CONTROL, "no-store"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Adds [`COMMON`].
pub(super) fn finish(mut reply: Reply) -> Reply {
    for (name, value) in COMMON {
        reply.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_path_counts_more_than_a_longer_beginning_and_that_more_than_a_shorter_one() {
        let page = |_: Asked| async { text(StatusCode::OK, "") };
        let router = Router::default().page("/api/*", Access::Token, page).page("/api/v1/*", Access::Token, page).page(
            "/api/v1/info",
            Access::Open,
            page,
        );
        let find = |path: &str| router.find(path).map(|(access, rest, _)| (access, rest));
        assert_eq!(find("/api/v1/info"), Some((Access::Open, String::new())));
        assert_eq!(find("/api/v1/tunnels/cpe-1"), Some((Access::Token, "tunnels/cpe-1".into())));
        assert_eq!(find("/api/v2"), Some((Access::Token, "v2".into())));
        assert_eq!(find("/api"), None);
        assert_eq!(find("/"), None);
    }
}
