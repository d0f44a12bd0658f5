//! What goes wrong with the API: which kind of trouble it is, what it is called, and whether all is listed anew.

use kube::core::response::Status;
use kube::runtime::watcher;

/// So often the API may fail to go on with a watch before all is listed again.
pub(super) const PATIENT: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// What was watched is too old: all is listed again.
    Gone,
    /// A watch broke off; the next request tells whether that means something.
    Broke,
    /// Nobody answers.
    Away,
    /// No permission.
    Forbidden,
    /// Nobody knows us, or any more.
    Unauthorized,
    /// Too many requests.
    Throttled,
    /// Another error of the API's.
    Failed,
    /// No answer of a Kubernetes API.
    Strange,
}

impl Kind {
    pub(super) fn is_ordinary(self) -> bool {
        matches!(self, Self::Gone | Self::Broke)
    }

    pub(super) fn of(error: &watcher::Error) -> Self {
        use watcher::Error as E;
        match error {
            E::WatchError(status) => Self::of_status(status),
            E::InitialListFailed(e) | E::WatchStartFailed(e) | E::WatchFailed(e) => match e {
                kube::Error::Api(status) => Self::of_status(status),
                kube::Error::SerdeError(_)
                | kube::Error::FromUtf8(_)
                | kube::Error::LinesCodecMaxLineLengthExceeded => Self::Strange,
                kube::Error::ReadEvents(_) => Self::Broke,
                _ => Self::Away,
            },
            E::NoResourceVersion => Self::Strange,
        }
    }

    pub(super) fn of_status(status: &Status) -> Self {
        match status.code {
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            410 => Self::Gone,
            429 => Self::Throttled,
            _ => Self::Failed,
        }
    }
}

pub(super) fn status_of(error: &watcher::Error) -> Option<&Status> {
    use watcher::Error as E;
    match error {
        E::WatchError(status) => Some(status),
        E::InitialListFailed(e) | E::WatchStartFailed(e) | E::WatchFailed(e) => match e {
            kube::Error::Api(status) => Some(status),
            _ => None,
        },
        E::NoResourceVersion => None,
    }
}

/// The last of its causes says the most.
pub(super) fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(deeper) = last.source() {
        last = deeper;
    }
    last.to_string()
}

pub(super) fn explain(what: &str, at: &str, error: &watcher::Error) -> String {
    let detail = match status_of(error) {
        Some(s) if s.message.is_empty() => format!("{} {}", s.code, s.reason),
        Some(s) => format!("{} {}", s.code, s.message),
        None => cause(error),
    };
    match Kind::of(error) {
        Kind::Forbidden => format!(
            "the Kubernetes API at {at} refuses {what} ({detail}): the agent's service account needs the ClusterRole \
             shared-socket (get, list and watch of namespaces and endpointslices.discovery.k8s.io), which the Helm \
             chart makes with kubernetesApi.enabled=true"
        ),
        Kind::Unauthorized => {
            format!("the Kubernetes API at {at} does not know the agent ({detail}), asked for {what}")
        }
        Kind::Away => format!("the Kubernetes API at {at} does not answer for {what}: {detail}"),
        Kind::Strange => format!("the Kubernetes API at {at} is not understood, asked for {what}: {detail}"),
        Kind::Throttled | Kind::Failed => format!("the Kubernetes API at {at} fails, asked for {what}: {detail}"),
        Kind::Gone => format!("{what} are listed again: {detail}"),
        Kind::Broke => format!("the watch of {what} broke off: {detail}"),
    }
}

/// The watcher goes on with the version that it has, where that cannot help: after a line that was not understood it
/// would leave out what the line said, and HTTP's own 410 it does not know.
pub(super) fn begins_anew(error: &watcher::Error, failures: u32) -> bool {
    use watcher::Error as E;
    let is_watch = matches!(error, E::WatchStartFailed(_) | E::WatchFailed(_));
    match Kind::of(error) {
        Kind::Gone | Kind::Strange => is_watch,
        Kind::Unauthorized => true, // with what the files say now
        Kind::Failed => is_watch && failures >= PATIENT,
        _ => false,
    }
}
