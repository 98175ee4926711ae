//! Which service a request is for: Lambda by its path, the others by what a POST to `/` carries. Before that, where
//! access keys are asked for, who it is from.

use std::sync::Arc;

use aws_client::Service;
use aws_model::sigv4::Refused;
use hyper::body::Incoming;
use hyper::header::HeaderName;
use hyper::{Method, Request};

use crate::app::App;
use crate::auth::{Caller, Denial, Identity, Target, permit};
use crate::body::{self, BodyError, RequestBody};
use crate::query::{Form, QueryError};
use crate::reply::Reply;
use crate::{autoscaling, iam, lambda, local, logs, query, sts, upstream};

const TARGET: HeaderName = HeaderName::from_static("x-amz-target");

/// Largest request of a side service: PutLogEvents takes 1 MiB of events, which escaping may double.
pub(crate) const MAX_SIDE_BODY: u64 = 4 * 1024 * 1024;

impl App {
    /// Answers a request.
    pub(crate) async fn dispatch(self: &Arc<Self>, request: Request<Incoming>, request_id: &str) -> Reply {
        let Some(auth) = self.auth.as_ref().filter(|_| !self.is_open(&request)) else {
            return self.serve(request.map(RequestBody::Wire), request_id).await;
        };
        let target = Target::of(&request);
        let plane = &self.control_plane;
        let checked = auth.authenticate(plane.realm(), plane.roles(), &self.sessions, request);
        // On the heap: where nothing is checked, nothing of it shall weigh.
        match Box::pin(checked).await {
            Ok(request) => Box::pin(self.serve(request, request_id)).await,
            Err(denial) => {
                tracing::debug!(?denial, request_id, "not let in");
                denial.reply(target, request_id)
            }
        }
    }

    /// What needs no credentials in any case.
    fn is_open(&self, request: &Request<Incoming>) -> bool {
        let (path, query) = (request.uri().path(), request.uri().query());
        path.starts_with(local::PREFIX)
            && (path == local::HEALTH || query.is_some_and(|query| self.is_linked(path, query)))
    }

    async fn serve(self: &Arc<Self>, request: Request<RequestBody>, request_id: &str) -> Reply {
        let path = request.uri().path();
        if local::is_here(path) {
            if let Some(Caller { identity: Identity::Session(session), .. }) = request.extensions().get() {
                let message = format!("User: {} is not authorized: only access keys of the account are", session.arn());
                return Denial::Forbidden(message).reply(Target::Lambda, request_id);
            }
            return local::dispatch(self, request).await;
        }
        if path == "/" && request.method() == Method::POST {
            return self.side_service(request, request_id).await;
        }
        lambda::dispatch(self, request, request_id).await
    }

    async fn side_service(&self, mut request: Request<RequestBody>, request_id: &str) -> Reply {
        let caller = request.extensions_mut().remove::<Caller>();
        let target = request.headers().get(TARGET).map(|value| value.to_str().unwrap_or_default().to_owned());
        let (head, body) = request.into_parts();
        let body = match body::read(body, MAX_SIDE_BODY).await {
            Ok(body) => body,
            Err(error) => return unreadable(&error, target.is_some(), request_id),
        };
        let upstream = |service| upstream::forward(self.upstream.as_ref(), service, &head, &body, request_id);
        if let Some(target) = target.as_deref().filter(|target| target.starts_with(autoscaling::TARGET_PREFIX)) {
            return match permit::autoscaling(self, caller.as_ref(), target, &body) {
                Ok(()) => autoscaling::dispatch(self, target, &body).await,
                Err(denial) => denial.reply(Target::Autoscaling, request_id),
            };
        }
        if let Some(target) = target {
            let operation = target.rsplit('.').next().unwrap_or_default();
            if let Err(denial) = permit::logs(self, caller.as_ref(), operation, &body) {
                return denial.reply(Target::Logs, request_id);
            }
            if let Some(reply) = upstream(Service::Logs).await {
                return reply;
            }
            return logs::dispatch(self, &target, &body).await;
        }
        let form = Form::parse(&String::from_utf8_lossy(&body));
        let (action, version) = (form.get("Action").unwrap_or_default(), form.get("Version").unwrap_or_default());
        let service = if version == iam::VERSION { "iam" } else { "sts" };
        if caller.as_ref().is_some_and(|caller| caller.service != service) {
            let refused = Refused::Service(service.to_owned());
            return Denial::from(refused).reply(Target::Query, request_id);
        }
        match version {
            sts::VERSION => {
                // What is forwarded is signed by the operator, so who asks must be allowed it here; and who a session is,
                // is known here alone.
                let own = action == "GetCallerIdentity" && caller.as_ref().is_some_and(Caller::is_session);
                let forwards =
                    self.upstream.as_ref().is_some_and(|client| client.endpoints().get(Service::Sts).is_some());
                if !own
                    && forwards
                    && let Err(denial) = permit::sts(self, caller.as_ref(), action, &form)
                {
                    return denial.reply(Target::Query, request_id);
                }
                match if own { None } else { upstream(Service::Sts).await } {
                    Some(reply) => reply,
                    None => sts::dispatch(self, caller.as_ref(), action, &form, request_id),
                }
            }
            iam::VERSION => match permit::iam(self, caller.as_ref(), action, &form) {
                Ok(()) => match upstream(Service::Iam).await {
                    Some(reply) => reply,
                    None => iam::dispatch(self, caller.as_ref(), action, &form, request_id).await,
                },
                Err(denial) => denial.reply(Target::Query, request_id),
            },
            _ => QueryError::invalid_action(action, version).reply(query::IAM, request_id),
        }
    }
}

fn unreadable(error: &BodyError, json: bool, request_id: &str) -> Reply {
    let (status, message) = match error {
        BodyError::TooLarge { size } => {
            (413, format!("the request has {size} bytes, this service takes {MAX_SIDE_BODY}"))
        }
        BodyError::Broken(_) => (400, "the request ended early".to_owned()),
    };
    if json {
        return logs::LogsError::new(status, "InvalidParameterException", message).reply();
    }
    QueryError::new(status, "ValidationError", message).reply(query::IAM, request_id)
}
