//! The page itself: three embedded files.

use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};

use crate::http::{Access, Reply, Router, html, text};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page loads what is here, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Adds the files. They tell nothing of the relay, but a browser asks for the token with the first page that needs it.
pub(super) fn pages(router: Router) -> Router {
    router
        .page("/", Access::Token, |_| async {
            let mut reply = html(PAGE.into());
            reply.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
            reply
        })
        .page("/page.css", Access::Token, |_| async { file("text/css; charset=utf-8", STYLE) })
        .page("/page.js", Access::Token, |_| async { file("text/javascript; charset=utf-8", SCRIPT) })
}

fn file(content_type: &'static str, content: &'static str) -> Reply {
    let mut reply = text(StatusCode::OK, content);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_has_nothing_inline_and_asks_nobody_else() {
        assert!(PAGE.contains("src=\"page.js\"") && PAGE.contains("href=\"page.css\""));
        for forbidden in ["<style", "style=", "onclick", "<script>", "http://", "https://"] {
            assert!(!PAGE.contains(forbidden), "{forbidden}");
        }
        // A mediator's words are never taken for markup.
        for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "https://"] {
            assert!(!SCRIPT.contains(forbidden), "{forbidden}");
        }
    }
}
