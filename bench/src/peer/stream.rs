//! TCP: a connection's first byte says what it wants.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::Context;

/// First byte of a connection whose bytes shall be read and forgotten.
pub const SINK: u8 = b'U';

/// First byte of a connection that shall be written to without end.
pub const SOURCE: u8 = b'D';

/// Bytes of one read or write.
pub const BLOCK: usize = 256 * 1024;

/// Most connections at once, a thread each; more are closed.
const CONNECTIONS_MAX: usize = 1024;

/// Listens, and serves from threads of its own. Returns the real address.
///
/// # Errors
/// The number is taken, or no thread can be made.
pub fn spawn(listen: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.local_addr()?;
    thread::Builder::new().name("accept".into()).spawn(move || accept(&listener))?;
    Ok(address)
}

fn accept(listener: &TcpListener) {
    let live = Arc::new(AtomicUsize::new(0));
    // An error is one connection's, gone before it was accepted, or a lack of descriptors that its end mends.
    for socket in listener.incoming().flatten() {
        let live = live.clone();
        if live.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            live.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let served = thread::Builder::new().name("stream".into()).stack_size(64 * 1024).spawn(move || {
            // The other end closes when it has enough.
            let _ = serve(&socket);
            live.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = served {
            tracing::warn!(%error, "connection refused: no thread for it");
        }
    }
}

fn serve(mut socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut wish = [0];
    socket.read_exact(&mut wish)?;
    let mut block = vec![0x5a; BLOCK];
    match wish[0] {
        SOURCE => loop {
            socket.write_all(&block)?;
        },
        _ => while socket.read(&mut block)? > 0 {},
    }
    Ok(())
}
