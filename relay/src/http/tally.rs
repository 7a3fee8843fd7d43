//! What the server counts.

use std::cell::Cell;

macro_rules! tally {
    ($($field:ident = $word:literal, $help:literal;)*) => {
        /// The server's own counters; one thread's.
        #[derive(Debug, Default)]
        pub struct Tally {
            $(#[doc = $help] pub $field: Cell<u64>,)*
            /// Connections now.
            pub live: Cell<u64>,
        }

        impl Tally {
            /// Each with its name and what it counts.
            pub fn fields(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$(($word, $help, self.$field.get()),)*].into_iter()
            }
        }
    };
}

tally! {
    connections = "http_connections_total", "HTTP connections";
    refused = "http_connections_refused", "HTTP connections refused at the limit";
    requests = "http_requests_total", "HTTP requests";
    refused_host = "http_requests_refused_host", "HTTP requests for another host than the loopback one that is listened on";
    refused_token = "http_requests_refused_token", "HTTP requests without the token";
    bad = "http_requests_bad", "HTTP requests that were malformed, too large, with a body, for an unknown page or in an unknown way";
    streams_refused = "http_streams_refused", "HTTP answers that would have gone on, refused at the limit";
    head_timeouts = "http_head_timeouts", "HTTP requests whose head did not come in time";
    idle_timeouts = "http_idle_timeouts", "HTTP connections closed since no request came";
    answer_timeouts = "http_answer_timeouts", "HTTP requests that the relay did not answer in time";
    write_timeouts = "http_write_timeouts", "HTTP connections closed since the answer was not read in time";
}

impl Tally {
    /// Adds one.
    pub(super) fn count(counter: &Cell<u64>) {
        counter.set(counter.get() + 1);
    }
}
