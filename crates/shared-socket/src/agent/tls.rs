//! TLS for `endpoints.http`. The files are looked at again as connections come: a renewed certificate needs no restart.

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use axum::extract::{ConnectInfo, Request, connect_info::Connected};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

use super::serve::{Shared, told};

const LARGEST: u64 = 1 << 20;
/// The files are looked at no more often.
const LOOK: Duration = Duration::from_secs(1);
/// Who has not shaken hands by then is let go.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes under way at once.
const HANDSHAKES: usize = 256;
/// What a kubelet asks, which has no certificate to show.
const OPEN: [&str; 2] = ["/healthz", "/readyz"];

/// Where the PEM files are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// The server's certificate, and those between it and its CA.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who asks for more than health must show a certificate that one of these has signed.
    pub client_ca: Option<PathBuf>,
}

/// What is wrong, and with which key of the configuration.
#[derive(Debug)]
pub struct Problem {
    /// `certificate`, `key` or `clientCa`.
    pub key: &'static str,
    /// What was tried, and why it failed.
    pub why: anyhow::Error,
}

/// What was read of the files.
#[derive(Debug, PartialEq)]
struct Texts {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    ensure!(path.is_absolute(), "{path:?} does not begin with /");
    let what = || format!("reading {}", path.display());
    // a pipe would never end
    ensure!(std::fs::metadata(path).with_context(what)?.is_file(), "{}: it is no file", what());
    let mut text = Vec::new();
    std::fs::File::open(path).and_then(|f| f.take(LARGEST + 1).read_to_end(&mut text)).with_context(what)?;
    ensure!(text.len() as u64 <= LARGEST, "{}: {LARGEST} bytes at most are read", what());
    Ok(text)
}

fn certificates(path: &Path, pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let what = || format!("reading certificates of {}", path.display());
    let list = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().with_context(what)?;
    if list.is_empty() {
        bail!("{}: there is none; `-----BEGIN CERTIFICATE-----` is looked for", what());
    }
    Ok(list)
}

impl Tls {
    /// Reads the files and looks whether they can be used together.
    pub fn check(&self) -> Result<(), Problem> {
        self.texts().and_then(|texts| self.server(&texts)).map(|_| ())
    }

    fn texts(&self) -> Result<Texts, Problem> {
        let read = |key, path: &Path| read(path).map_err(|why| Problem { key, why });
        Ok(Texts {
            certificate: read("certificate", &self.certificate)?,
            key: read("key", &self.key)?,
            client_ca: self.client_ca.as_deref().map(|path| read("clientCa", path)).transpose()?,
        })
    }

    fn server(&self, texts: &Texts) -> Result<ServerConfig, Problem> {
        let of = |key| move |why| Problem { key, why };
        let chain = certificates(&self.certificate, &texts.certificate).map_err(of("certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(&texts.key)
            .with_context(|| format!("reading a private key of {}", self.key.display()))
            .map_err(of("key"))?;
        let provider = Arc::new(default_provider());
        let verifier = match self.client_ca.as_deref().zip(texts.client_ca.as_deref()) {
            None => WebPkiClientVerifier::no_client_auth(),
            Some((path, pem)) => certificates(path, pem)
                .and_then(|list| {
                    let mut roots = RootCertStore::empty();
                    list.into_iter().try_for_each(|ca| roots.add(ca))?;
                    // who has none is told so in words, and may ask for health
                    let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
                    Ok(builder.allow_unauthenticated().build()?)
                })
                .with_context(|| format!("using {} as a CA", path.display()))
                .map_err(of("clientCa"))?,
        };
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_client_cert_verifier(verifier).with_single_cert(chain, key))
            .with_context(|| {
                format!("using the key {} for the certificate {}", self.key.display(), self.certificate.display())
            })
            .map_err(of("key"))?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(server)
    }
}

/// The files as they were when they could be used last.
struct Current {
    tls: Tls,
    shared: Shared,
    acceptor: TlsAcceptor,
    /// What was read last, good or bad: it is told once.
    seen: Result<Texts, String>,
    looked: Instant,
}

impl Current {
    fn new(tls: Tls, shared: Shared) -> Result<Self, Problem> {
        let texts = tls.texts()?;
        let acceptor = TlsAcceptor::from(Arc::new(tls.server(&texts)?));
        told(&shared).tls_error = None;
        Ok(Self { tls, shared, acceptor, seen: Ok(texts), looked: Instant::now() })
    }

    fn acceptor(&mut self) -> TlsAcceptor {
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            self.look();
        }
        self.acceptor.clone()
    }

    fn look(&mut self) {
        let why = |problem: Problem| format!("{}: {:#}", problem.key, problem.why);
        let texts = self.tls.texts().map_err(why);
        if texts == self.seen {
            return;
        }
        let server = match &texts {
            Ok(texts) => self.tls.server(texts).map_err(why),
            Err(why) => Err(why.clone()),
        };
        self.seen = texts;
        told(&self.shared).tls_error = server.as_ref().err().cloned();
        match server {
            Ok(server) => {
                self.acceptor = Arc::new(server).into();
                tracing::info!("endpoints.tls: the files have changed; new connections get the new certificate");
            }
            Err(why) => tracing::warn!(
                "endpoints.tls: the files have changed and cannot be used, those before stay in use: {why}"
            ),
        }
    }
}

type Ready = (TlsStream<TcpStream>, SocketAddr);

/// Hands out connections that have shaken hands. One that takes its time holds up no other.
pub struct Listener {
    tcp: TcpListener,
    current: Current,
    handshakes: JoinSet<Option<Ready>>,
}

impl Listener {
    /// Over a socket that listens.
    pub fn new(tcp: TcpListener, tls: Tls, shared: Shared) -> Result<Self, Problem> {
        Ok(Self { tcp, current: Current::new(tls, shared)?, handshakes: JoinSet::new() })
    }
}

async fn shake(acceptor: TlsAcceptor, stream: TcpStream, peer: SocketAddr) -> Option<Ready> {
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some((stream, peer)),
        Ok(Err(e)) => tracing::debug!(%peer, "a TLS handshake failed: {e}"),
        Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
    }
    None
}

impl axum::serve::Listener for Listener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> Ready {
        loop {
            tokio::select! {
                Some(done) = self.handshakes.join_next() => {
                    if let Ok(Some(ready)) = done {
                        return ready;
                    }
                }
                (stream, peer) = axum::serve::Listener::accept(&mut self.tcp),
                    if self.handshakes.len() < HANDSHAKES =>
                {
                    self.handshakes.spawn(shake(self.current.acceptor(), stream, peer));
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// Who asks, as far as TLS knows.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// It has shown a certificate, which was found good in the handshake.
    is_known: bool,
}

impl Connected<IncomingStream<'_, Listener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        Self { is_known: stream.io().get_ref().1.peer_certificates().is_some() }
    }
}

/// Lets those with a certificate pass; others may ask for health only.
pub async fn demand(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    if peer.is_known || OPEN.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let why = "a client certificate is demanded here (endpoints.tls.clientCa), and none was shown\n";
    (StatusCode::FORBIDDEN, why).into_response()
}
