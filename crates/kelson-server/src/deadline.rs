//! A client's deadline, told by the code that gRPC has for it.
//!
//! tonic answers a call whose `grpc-timeout` is over with `CANCELLED`; whether a client sees that or its own
//! `DEADLINE_EXCEEDED` is a matter of who is faster.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// The longest number in the header (gRPC over HTTP/2, `TimeoutValue`).
const MAX_DIGITS: usize = 8;

/// A service whose calls end when their clients' deadlines are over.
#[derive(Debug, Clone)]
pub struct Deadline<S>(S);

/// Makes them; a layer of tonic's server, whose own timer then ends later.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines;

impl<S> Layer<S> for Deadlines {
    type Service = Deadline<S>;

    fn layer(&self, service: S) -> Deadline<S> {
        Deadline(service)
    }
}

impl<S, B> Service<Request<B>> for Deadline<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let limit = timeout(request.headers());
        let answer = self.0.call(request);
        let Some(limit) = limit else {
            return Box::pin(answer);
        };
        // Begun here and not when it is first waited for: tonic's begins after this.
        let over = tokio::time::sleep(limit);
        Box::pin(async move {
            tokio::select! {
                biased;
                answer = answer => answer,
                () = over => {
                    let text = format!("the call's deadline of {limit:?} is over");
                    Ok(Status::deadline_exceeded(text).into_http())
                }
            }
        })
    }
}

/// What `grpc-timeout` says; nothing if it is not there or of another form.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.len() > MAX_DIGITS || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_late_call_ends_with_its_code_and_one_in_time_with_its_answer() {
        let status = async |header: &str, takes: u64| {
            let mut service =
                Deadlines.layer(tower::service_fn(move |_: Request<()>| async move {
                    tokio::time::sleep(Duration::from_millis(takes)).await;
                    Ok::<_, std::convert::Infallible>(Response::new(Body::default()))
                }));
            let request = Request::builder().header("grpc-timeout", header);
            let answer = service.call(request.body(()).unwrap()).await.unwrap();
            let status = answer.headers().get("grpc-status");
            status.map(|status| status.to_str().unwrap().to_owned())
        };
        assert_eq!(status("50m", 100).await.as_deref(), Some("4"));
        assert_eq!(status("50m", 20).await, None);
        assert_eq!(status("x", 20).await, None);
    }

    #[test]
    fn the_header_is_read_as_grpc_has_it() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout(&headers)
        };
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("100000u"), Some(Duration::from_millis(100)));
        for wrong in ["", "S", "-1S", "1", "999999999S", "1x", "1 S"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }
}
