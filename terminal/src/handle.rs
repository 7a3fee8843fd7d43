//! What keeps a connection, and a port on it, alive.

use std::sync::Arc;

use isthmus_proto::Code;

use crate::Error;
use crate::shared::Shared;
use crate::state::State;

/// A share of a connection. When the last one is dropped, the connection ends.
#[derive(Clone)]
pub(crate) struct Handle(Arc<Inner>);

struct Inner(Arc<Shared>);

impl Drop for Inner {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(Arc::new(Inner(shared)))
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.0
    }

    /// The connection without a share of it.
    pub(crate) fn watch(&self) -> Arc<Shared> {
        self.0.0.clone()
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.shared().is_ended()
    }
}

/// A share of a port. When the last one is dropped, the port ends.
pub(crate) struct Held {
    handle: Handle,
    key: usize,
}

impl Held {
    /// For an entry that counts this holder already.
    pub(crate) fn new(handle: Handle, key: usize) -> Self {
        Self { handle, key }
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(crate) fn shared(&self) -> &Shared {
        self.handle.shared()
    }

    /// Works on the state, with this port's key.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut State, usize) -> R) -> R {
        self.shared().with(|state| work(state, self.key))
    }

    /// Waits for the answer to a request.
    pub(crate) async fn answered(&self, reply: tokio::sync::oneshot::Receiver<Code>) -> Result<(), Error> {
        answered(self.shared(), reply).await
    }
}

impl Clone for Held {
    fn clone(&self) -> Self {
        self.with(|state, key| state.hold(key));
        Self { handle: self.handle.clone(), key: self.key }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let now = self.shared().now();
        self.with(|state, key| state.release(key, now));
    }
}

async fn answered(shared: &Shared, reply: tokio::sync::oneshot::Receiver<Code>) -> Result<(), Error> {
    match reply.await {
        Ok(Code::Ok) => Ok(()),
        Ok(code) => Err(Error::Refused(code)),
        Err(_) => Err(gone(shared)),
    }
}

/// Why an answer does not come any more.
pub(crate) fn gone(shared: &Shared) -> Error {
    shared.with(|state| state.check()).err().unwrap_or(Error::Refused(Code::UnknownPort))
}
