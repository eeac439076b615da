//! Whether this node has taken a change of the directory over. `portico prov` asks when it has made one.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until, timeout_at};
use utoipa::ToSchema;

use crate::app::env::AdminEnv;

/// Longest wait that may be asked for.
pub(super) const MOST: Duration = Duration::from_secs(30);
/// How often to ask the directory where it tells nothing, and how long it has time to tell a change first.
const LOOK: Duration = Duration::from_millis(250);
const TELL: Duration = Duration::from_millis(100);
/// How often to see whether a change has come.
const GLANCE: Duration = Duration::from_millis(5);

/// What to wait for.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WaitFor {
    /// A point of the directory, as `portico prov` knows it after a change. Absent: the directory as it is now.
    #[serde(default)]
    pub point: Option<String>,
    /// Milliseconds at most; never more than 30 seconds.
    pub within_ms: u64,
}

/// Whether this node has what it waited for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Taken {
    /// Name of the node.
    pub node: String,
    /// Whether everything up to the point is in force here.
    pub in_force: bool,
    /// Why not.
    pub why_not: Option<String>,
    /// Number of the configuration in force.
    pub generation: u64,
}

/// Waits until this node, and every other one, has taken over what the directory has at a point. Looks for it there where it is not told.
#[utoipa::path(post, path = "/v1/directory/wait", request_body = WaitFor, responses((status = 200, body = Taken)))]
pub(crate) async fn wait(State(env): State<Arc<AdminEnv>>, Json(wanted): Json<WaitFor>) -> Json<Taken> {
    let end = Instant::now() + Duration::from_millis(wanted.within_ms).min(MOST);
    let why_not = match timeout_at(end, taken(&env, wanted.point.as_deref())).await {
        Ok(()) => env.directory_refusal(),
        Err(_) => Some(late(&env)),
    };
    Json(Taken {
        node: env.config.load().node.clone(),
        in_force: why_not.is_none(),
        why_not,
        generation: env.snapshot.load().generation,
    })
}

fn late(env: &AdminEnv) -> String {
    env.directory_refusal()
        .unwrap_or_else(|| "this node does not see it yet where it reads".to_owned())
}

/// Returns when everything up to the point is in force, and the route cache has followed.
async fn taken(env: &Arc<AdminEnv>, point: Option<&str>) {
    let is_told = env.directory_way().is_some_and(|way| way.told_by.is_some());
    let mut next_look = Instant::now()
        + if is_told && point.is_some() {
            TELL
        } else {
            Duration::ZERO
        };
    loop {
        let has_it = match point {
            Some(point) => env.has_taken(point).await,
            None => false,
        };
        if has_it {
            break;
        }
        if Instant::now() >= next_look {
            let looked = look(env).await;
            if looked && point.is_none() {
                break;
            }
            next_look = Instant::now() + LOOK;
        } else {
            sleep_until(Instant::now() + GLANCE).await;
        }
    }
    env.directory_mark().notified().await;
}

/// In a task of its own: a look that has begun goes on to its end. An error is told by the refusal.
async fn look(env: &Arc<AdminEnv>) -> bool {
    let app = env.app.clone();
    let look = tokio::spawn(async move { app.look_at_directory().await });
    matches!(look.await, Ok(Ok(())))
}
