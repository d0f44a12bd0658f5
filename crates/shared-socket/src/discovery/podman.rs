//! Podman's containers: by its service, or where that does not run (it need not) by its command. Both tell the same.
//! The service speaks Docker's API too, but there it shows the infra containers of pods, which are nobody's workload.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;

use super::{Backend, Known, Life, Runtime, Workload, first_socket, no_answer, socket_path};

const USUAL: [&str; 1] = ["/run/podman/podman.sock"];

/// The socket that was asked for, or the one that is there.
pub fn endpoint(asked: Option<&str>) -> anyhow::Result<Option<PathBuf>> {
    match asked {
        Some(text) => Ok(Some(socket_path(text)?)),
        None => Ok(first_socket(&USUAL)),
    }
}
/// It waits while another command of its holds a container.
const PATIENCE: Duration = Duration::from_secs(30);
const LARGEST: u64 = 64 << 20;
/// Paused ones are told of only when they are asked for. By HTTP/1.0 the answer ends with the connection.
const REQUEST: &str = "GET /v4.0.0/libpod/containers/json?\
                       filters=%7B%22status%22%3A%5B%22running%22%2C%22paused%22%5D%7D \
                       HTTP/1.0\r\nHost: podman\r\n\r\n";
const COMMAND: [&str; 7] = ["ps", "--format", "json", "--filter", "status=running", "--filter", "status=paused"];

/// Podman, by what of it is here.
pub struct Podman {
    socket: Option<PathBuf>,
    /// What is asked where nobody listens at the socket, unless that was asked for.
    program: Option<PathBuf>,
    known: Known<Life>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    pid: Option<i64>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    is_infra: bool,
}

fn parse(text: &[u8]) -> anyhow::Result<Vec<Row>> {
    let text = text.trim_ascii();
    // a list without entries is `[]`, `null` or nothing
    let rows: Option<Vec<Row>> = if text.is_empty() { None } else { serde_json::from_slice(text)? };
    Ok(rows.unwrap_or_default())
}

fn body(answer: &[u8]) -> anyhow::Result<&[u8]> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").context("the answer is no HTTP")?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let status = head.lines().next().unwrap_or("");
    let body = &answer[end + 4..];
    match status.split_whitespace().nth(1) {
        Some("200") => Ok(body),
        Some("404") => bail!("it does not speak Podman's API ({status})"),
        _ => bail!("{status}: {}", String::from_utf8_lossy(body).trim()),
    }
}

fn ask(socket: &Path) -> anyhow::Result<Vec<Row>> {
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(REQUEST.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(LARGEST).read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|e| no_answer(socket, "Podman's service", "--podman-endpoint", &e))?;
    body(&answer).and_then(parse).with_context(|| format!("asking {} for its containers", socket.display()))
}

fn ps(program: &Path) -> anyhow::Result<Vec<Row>> {
    let what = || format!("asking `{} ps --format json`", program.display());
    let mut command = Command::new(program);
    command.args(COMMAND).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().with_context(what)?;
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(child.wait_with_output()));
    let Ok(output) = told.recv_timeout(PATIENCE) else {
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        bail!("{}: no answer within {} s", what(), PATIENCE.as_secs());
    };
    let output = output.with_context(what)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}", what(), said.lines().last().unwrap_or("no message"));
    }
    parse(&output.stdout).with_context(what)
}

impl Podman {
    /// What of it this node has. With `may_run`, its command is asked where its service does not run.
    pub fn find(asked: Option<&str>, may_run: bool) -> anyhow::Result<Option<Self>> {
        let (socket, may_run) = (endpoint(asked)?, may_run && asked.is_none());
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = std::env::split_paths(&path).map(|dir| dir.join("podman")).find(|p| may_run && p.is_file());
        let any = socket.is_some() || program.is_some();
        Ok(any.then(|| Self { socket, program, known: Known::new() }))
    }

    /// Where its service is.
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    fn rows(&self) -> anyhow::Result<Vec<Row>> {
        match (&self.socket, &self.program) {
            (Some(socket), None) => ask(socket),
            (Some(socket), Some(program)) => match UnixStream::connect(socket) {
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => ps(program),
                _ => ask(socket),
            },
            (None, Some(program)) => ps(program),
            (None, None) => Ok(Vec::new()),
        }
    }
}

impl Backend for Podman {
    fn describe(&self) -> String {
        match (&self.socket, &self.program) {
            (Some(socket), _) => format!("Podman at {}", socket.display()),
            (None, program) => {
                format!("Podman by `{} ps`", program.as_deref().unwrap_or(Path::new("podman")).display())
            }
        }
    }

    fn list(&mut self) -> anyhow::Result<Vec<Workload>> {
        let rows = self.rows()?;
        self.known.keep(rows.iter().map(|row| &*row.id));
        let mut found = Vec::new();
        for row in rows.into_iter().filter(|row| !row.is_infra) {
            let Some(pid) = row.pid.and_then(|p| u32::try_from(p).ok()).filter(|p| *p > 0) else { continue };
            let life = match self.known.0.get(&row.id).filter(|life| life.pid == pid && life.goes_on()) {
                Some(life) => life.clone(),
                None => {
                    let Some(life) = Life::of(pid, &row.id) else { continue }; // ended meanwhile
                    if life.place.is_ok() {
                        self.known.0.insert(row.id.clone(), life.clone());
                    }
                    life
                }
            };
            found.push(Workload {
                runtime: Runtime::Podman,
                namespace: None,
                pod: None,
                uid: None,
                container: Some(row.names.unwrap_or_default().into_iter().next().unwrap_or_else(|| row.id.clone())),
                id: row.id,
                labels: row.labels.unwrap_or_default(),
                annotations: BTreeMap::new(),
                namespace_labels: None,
                services: None,
                host_network: life.host_network,
                pid: Some(pid),
                place: life.place.map(|f| vec![f]),
            });
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_of_podman_4() {
        let text = br#"[{"Id":"abc","Names":["web"],"Pid":7,"Labels":null,"IsInfra":false,"State":"running"},
            {"Id":"def","Names":["x-infra"],"Pid":5,"IsInfra":true}]"#;
        let rows = parse(text).unwrap();
        assert_eq!((rows.len(), rows[0].pid, rows[0].is_infra, rows[1].is_infra), (2, Some(7), false, true));
        for none in ["", "\n", "[]", "null"] {
            assert!(parse(none.as_bytes()).unwrap().is_empty(), "{none:?}");
        }
        assert!(parse(b"{}").is_err());
    }

    #[test]
    fn answers() {
        assert_eq!(body(b"HTTP/1.0 200 OK\r\nServer: x\r\n\r\n[]").unwrap(), b"[]");
        for (text, expected) in [
            ("HTTP/1.1 404 Not Found\r\n\r\n", "does not speak Podman's API"),
            ("HTTP/1.1 500 Oh\r\n\r\n{\"cause\":\"x\"}", "500 Oh: {\"cause\":\"x\"}"),
            ("SSH-2.0-x", "no HTTP"),
            ("", "no HTTP"),
        ] {
            let error = format!("{:#}", body(text.as_bytes()).unwrap_err());
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_socket_that_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none.sock");
        let list = || format!("{:#}", Podman::find(path.to_str(), true).unwrap().unwrap().list().unwrap_err());
        assert!(list().contains(&format!("nothing is at {}", path.display())), "{}", list());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(list().contains("nobody listens"), "{}", list());
    }

    #[test]
    fn a_socket_that_nobody_serves_leaves_the_command() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("podman.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let mut podman = Podman { socket: Some(socket), program: Some("/bin/false".into()), known: Known::new() };
        let error = format!("{:#}", podman.list().unwrap_err());
        assert!(error.contains("`/bin/false ps --format json` failed"), "{error}");
    }

    proptest! {
        #[test]
        fn anything_is_taken_or_refused(text in "\\PC{0,60}") {
            let _ = parse(text.as_bytes());
            let _ = body(text.as_bytes());
        }
    }
}
