//! Connections that change their protocol (WebSocket and others): bytes both ways until
//! either side ends. Must not look at them.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio_util::sync::CancellationToken;

use super::handle::Client;

/// Joins the two connections once both have changed their protocol.
pub fn join(client: OnUpgrade, other: OnUpgrade, who: Client, ending: CancellationToken) {
    tokio::spawn(async move {
        // As any connection it counts until its end.
        let _counted = who;
        let joined = async {
            let (client, other) = tokio::try_join!(client, other).map_err(std::io::Error::other)?;
            copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(other)).await
        };
        tokio::select! {
            () = ending.cancelled() => {}
            done = joined => {
                if let Err(error) = done {
                    tracing::debug!(%error, "an upgraded connection broke off");
                }
            }
        }
    });
}
