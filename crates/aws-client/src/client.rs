//! One call: signed, sent, tried again where that can help, its answer read up to a limit.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_model::sigv4::{self, Credentials, Head, Payload, SigningRequest};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::{PathAndQuery, Uri};
use hyper::{Method, Request, Response, StatusCode};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;

use crate::endpoint::{Endpoint, Endpoints};
use crate::retry;
use crate::service::Service;

/// How Firelet calls others.
#[derive(Debug, Clone)]
pub struct Options {
    /// The region of signatures.
    pub region: String,
    /// What requests are signed with; without them they are not.
    pub credentials: Option<Credentials>,
    /// How long a connection may take. Default: 3 s.
    pub connect_timeout: Duration,
    /// How long an answer may take to begin, and how long to go on after a pause. Default: 30 s.
    pub answer_timeout: Duration,
    /// How often a call is tried. Default: 3.
    pub attempts: u32,
}

impl Options {
    /// The defaults, for a region and whatever credentials there are.
    #[must_use]
    pub fn new(region: impl Into<String>, credentials: Option<Credentials>) -> Self {
        Self {
            region: region.into(),
            credentials,
            connect_timeout: Duration::from_secs(3),
            answer_timeout: Duration::from_secs(30),
            attempts: 3,
        }
    }
}

/// A request to a service.
#[derive(Debug, Clone)]
pub struct Call {
    pub service: Service,
    pub method: Method,
    /// Percent-encoded path and query; begins with a slash.
    pub path: String,
    /// Without `host`, and without what signing adds.
    pub headers: HeaderMap,
    pub body: Bytes,
    /// In whose name.
    pub identity: Identity,
    /// Bytes of the answer that are read; a longer one is an error.
    pub limit: usize,
    /// Tries, at most [`Options::attempts`]; 1 where the caller tries again itself.
    pub attempts: u32,
}

/// Whose signature a request carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// Firelet's own, if it has credentials.
    Own,
    /// That of somebody else: it is among the headers, and so is the `host` that it covers.
    Signed,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// The client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is nothing to check a server's certificate against.
    #[error("{endpoint} cannot be trusted without root certificates: install ca-certificates, or set SSL_CERT_FILE")]
    NoRoots {
        /// An endpoint that needs them.
        endpoint: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The TLS library refused its own settings.
    #[error("TLS cannot be used")]
    Tls(#[from] rustls::Error),
}

/// A call without a usable answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The service has no endpoint.
    #[error("{service} has no endpoint: set `{service}` below `[endpoints]`, or {variable}", variable = service.variable())]
    NoEndpoint {
        /// The service.
        service: Service,
    },
    /// The request cannot be put into HTTP.
    #[error("the request to {service} cannot be sent as HTTP")]
    Request {
        /// The service.
        service: Service,
        /// What is wrong.
        source: hyper::http::Error,
    },
    /// Nobody answered.
    #[error("{service} cannot be reached at {endpoint}")]
    Unreachable {
        /// The service.
        service: Service,
        /// Where it should be.
        endpoint: String,
        /// What the system said.
        source: legacy::Error,
    },
    /// The answer did not begin, or stopped, for too long.
    #[error("{service} at {endpoint} did not answer within {} s", seconds.as_secs())]
    Slow {
        /// The service.
        service: Service,
        /// Where it is.
        endpoint: String,
        /// The patience.
        seconds: Duration,
    },
    /// The connection broke.
    #[error("the answer of {service} ended early")]
    Broken {
        /// The service.
        service: Service,
        /// What happened.
        source: hyper::Error,
    },
    /// The answer is too long.
    #[error("the answer of {service} is longer than {limit} bytes")]
    TooLong {
        /// The service.
        service: Service,
        /// What the caller takes.
        limit: usize,
    },
}

impl SendError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoEndpoint { .. } | Self::Request { .. } | Self::TooLong { .. } => false,
            Self::Unreachable { .. } | Self::Slow { .. } | Self::Broken { .. } => true,
        }
    }

    /// The error with what caused it, in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}

/// Calls services. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    endpoints: Endpoints,
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Client").field("endpoints", &self.shared.endpoints).finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a client; connects to nobody yet.
    ///
    /// # Errors
    /// An endpoint is `https` and this host has no root certificates.
    pub fn new(options: Options, endpoints: Endpoints) -> Result<Self, StartError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let secure = endpoints.iter().find(|(_, endpoint)| endpoint.scheme == hyper::http::uri::Scheme::HTTPS);
        let tls = match secure {
            None => builder.with_root_certificates(rustls::RootCertStore::empty()),
            Some((_, endpoint)) => builder
                .with_native_roots()
                .map_err(|source| StartError::NoRoots { endpoint: endpoint.to_string(), source })?,
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(options.connect_timeout));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls.with_no_client_auth()).https_or_http().enable_http1();
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .build(connector.wrap_connector(tcp));
        Ok(Self { shared: Arc::new(Shared { options, endpoints, http }) })
    }

    /// Where services are.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.shared.endpoints
    }

    /// Whether requests carry a signature of Firelet's own.
    #[must_use]
    pub fn has_credentials(&self) -> bool {
        self.shared.options.credentials.is_some()
    }

    /// The settings.
    pub(crate) fn options(&self) -> &Options {
        &self.shared.options
    }

    /// Sends a request and reads its answer. An answer with an error's status is an answer.
    ///
    /// # Errors
    /// There is no answer after all tries, or it is too long.
    pub async fn send(&self, call: &Call) -> Result<Answer, SendError> {
        let attempts = call.attempts.clamp(1, self.shared.options.attempts.max(1));
        let mut failed = 0;
        loop {
            let result = async { self.collect(call, self.open(call).await?).await }.await;
            failed += 1;
            let again = match &result {
                Ok(answer) => retry::is_transient(answer.status),
                Err(error) => error.is_transient(),
            };
            if !again || failed >= attempts {
                return result;
            }
            if let Err(error) = &result {
                tracing::debug!(error = error.chain(), service = %call.service, failed, "trying again");
            }
            tokio::time::sleep(retry::pause(failed, retry::random())).await;
        }
    }

    /// Sends a request once, and answers as soon as the answer begins.
    pub(crate) async fn open(&self, call: &Call) -> Result<Response<Incoming>, SendError> {
        let endpoint = self.endpoint(call.service)?;
        self.open_at(call, endpoint).await
    }

    /// The endpoint of a service.
    pub(crate) fn endpoint(&self, service: Service) -> Result<&Endpoint, SendError> {
        self.shared.endpoints.get(service).ok_or(SendError::NoEndpoint { service })
    }

    /// As [`Self::open`], at an endpoint other than the service's.
    pub(crate) async fn open_at(&self, call: &Call, endpoint: &Endpoint) -> Result<Response<Incoming>, SendError> {
        let service = call.service;
        let request = self.request(call, endpoint).map_err(|source| SendError::Request { service, source })?;
        let seconds = self.shared.options.answer_timeout;
        match tokio::time::timeout(seconds, self.shared.http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(source)) => Err(SendError::Unreachable { service, endpoint: endpoint.to_string(), source }),
            Err(_) => Err(SendError::Slow { service, endpoint: endpoint.to_string(), seconds }),
        }
    }

    fn request(&self, call: &Call, endpoint: &Endpoint) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let path: PathAndQuery = format!("{}{}", endpoint.prefix, call.path).parse()?;
        let mut headers = call.headers.clone();
        if call.identity == Identity::Own {
            headers.insert(HOST, HeaderValue::from_str(endpoint.authority.as_str())?);
            headers.remove(AUTHORIZATION);
            if let Some(credentials) = &self.shared.options.credentials {
                self.sign(call, &path, credentials, &mut headers)?;
            }
        }
        let uri = Uri::builder()
            .scheme(endpoint.scheme.clone())
            .authority(endpoint.authority.clone())
            .path_and_query(path)
            .build()?;
        let mut request = Request::builder().method(call.method.clone()).uri(uri).body(Full::new(call.body.clone()))?;
        *request.headers_mut() = headers;
        Ok(request)
    }

    fn sign(
        &self,
        call: &Call,
        path: &PathAndQuery,
        credentials: &Credentials,
        headers: &mut HeaderMap,
    ) -> Result<(), hyper::http::Error> {
        let named: Vec<(&str, &str)> =
            headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?))).collect();
        let request = SigningRequest {
            head: Head { method: call.method.as_str(), path: path.path(), query: path.query(), headers: &named },
            payload: Payload::Bytes(&call.body),
            region: call.service.signing_region(&self.shared.options.region),
            service: call.service.signing_name(),
        };
        let added = sigv4::sign(&request, credentials, SystemTime::now());
        for (name, value) in added {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_str(&value)?);
        }
        Ok(())
    }

    async fn collect(&self, call: &Call, response: Response<Incoming>) -> Result<Answer, SendError> {
        let (head, mut body) = response.into_parts();
        let too_long = SendError::TooLong { service: call.service, limit: call.limit };
        if body.size_hint().lower() > call.limit as u64 {
            return Err(too_long);
        }
        let mut whole = BytesMut::new();
        while let Some(data) = self.next(call.service, &mut body).await? {
            if whole.len() + data.len() > call.limit {
                return Err(too_long);
            }
            whole.extend_from_slice(&data);
        }
        Ok(Answer { status: head.status, headers: head.headers, body: whole.freeze() })
    }

    /// The next piece of an answer's body.
    pub(crate) async fn next(&self, service: Service, body: &mut Incoming) -> Result<Option<Bytes>, SendError> {
        let seconds = self.shared.options.answer_timeout;
        loop {
            match tokio::time::timeout(seconds, body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => {
                    // Trailers are not data.
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Ok(Some(Err(source))) => return Err(SendError::Broken { service, source }),
                Err(_) => {
                    let endpoint = self.endpoint(service).map(Endpoint::to_string).unwrap_or_default();
                    return Err(SendError::Slow { service, endpoint, seconds });
                }
            }
        }
    }
}
