//! `grpc` against a server made of the h2 library's other side.

use crate::{Host, LONG, certificates::Authority};
use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use lb_tests::{lab::Result, require, skip::Need};
use lb_userspace::model::{GrpcCheck, HealthCheck, TlsSpec};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::{net::TcpListener, sync::Arc};
use tokio::io::{AsyncRead, AsyncWrite};

const PORT: u16 = 50051;
const TLS_PORT: u16 = 50052;
const NAME: &str = "grpc.example.com";

/// The message that asks for a service, as it is on the wire: written by hand, by the specification.
fn asking_for(service: &str) -> Vec<u8> {
    if service.is_empty() {
        return vec![0, 0, 0, 0, 0];
    }
    let length = service.len() as u8;
    [&[0, 0, 0, 0, length + 2, 0x0a, length], service.as_bytes()].concat()
}

fn with_status(status: &'static str, message: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    trailers.insert("grpc-message", HeaderValue::from_static(message));
    trailers
}

async fn answer(request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) -> Option<()> {
    let (head, mut body) = request.into_parts();
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        body.flow_control().release_capacity(data.len()).ok()?;
        message.extend_from_slice(&data);
    }
    assert_eq!(head.method, "POST");
    assert_eq!(head.uri.path(), "/grpc.health.v1.Health/Check");
    assert_eq!(head.headers["content-type"], "application/grpc");
    assert_eq!(head.headers["te"], "trailers");
    let is = |service: &str| message == asking_for(service);
    let mut response = Response::builder().header("content-type", "application/grpc").body(()).ok()?;
    let status = match () {
        () if is("") || is("up.v1.Service") => 1,
        () if is("down.v1.Service") => 2,
        () if is("silent.v1.Service") => std::future::pending().await,
        () if is("web.v1.Service") => {
            response.headers_mut().insert("content-type", HeaderValue::from_static("text/html"));
            9
        }
        () if is("busy.v1.Service") => {
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            9
        }
        () if is("late.v1.Service") => {
            let mut stream = respond.send_response(response, false).ok()?;
            return stream.send_trailers(with_status("14", "try again")).ok();
        }
        () => {
            response.headers_mut().extend(with_status("5", "unknown service"));
            return respond.send_response(response, true).ok().map(drop);
        }
    };
    let mut stream = respond.send_response(response, false).ok()?;
    stream.send_data(Bytes::from(vec![0, 0, 0, 0, 2, 0x08, status]), false).ok()?;
    stream.send_trailers(with_status("0", "")).ok()
}

async fn converse(io: impl AsyncRead + AsyncWrite + Unpin) -> Option<()> {
    let mut connection = h2::server::handshake(io).await.ok()?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request.ok()?;
        tokio::spawn(answer(request, respond));
    }
    None
}

/// Serves until the test's process ends.
fn serve(listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>) {
    listener.set_nonblocking(true).expect("a socket");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        None => converse(stream).await,
                        Some(tls) => {
                            let stream = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await.ok()?;
                            converse(stream).await
                        }
                    }
                });
            }
        });
    });
}

fn of(service: &str) -> HealthCheck {
    HealthCheck::Grpc(GrpcCheck { service: service.into(), tls: None })
}

#[test]
fn grpc_asks_for_the_health_of_a_service() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let host = Host::new()?;
    serve(host.listen(PORT), None);
    assert_eq!(host.check(&of(""), PORT, LONG), Ok(()));
    assert_eq!(host.check(&of("up.v1.Service"), PORT, LONG), Ok(()));
    let fails = |service: &str| host.fails(&of(service), PORT);
    assert_eq!(fails("down.v1.Service"), "gRPC service is NOT_SERVING");
    assert_eq!(fails("nobody.v1.Service"), "gRPC error: 5 NOT_FOUND: unknown service");
    assert_eq!(fails("late.v1.Service"), "gRPC error: 14 UNAVAILABLE: try again");
    assert_eq!(fails("web.v1.Service"), "not a gRPC answer");
    assert_eq!(fails("busy.v1.Service"), "status 503, expected 200");
    let silent = host.check(&of("silent.v1.Service"), PORT, crate::SHORT).expect_err("silence");
    assert_eq!(silent.to_string(), "connected, but no answer within 300ms");
    host.hangs_and_refuses(&of(""));
    host.leaks_nothing(&of(""), PORT, true);
    host.leaks_nothing(&of("down.v1.Service"), PORT, false);
    Ok(())
}

#[test]
fn grpc_inside_tls() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let host = Host::new()?;
    let authority = Authority::new(&host)?;
    for (year, port) in [(2999, TLS_PORT), (2020, TLS_PORT + 1)] {
        let pair = authority.sign(&host, NAME, year);
        let certificate = CertificateDer::from_pem_file(&pair.certificate).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(&pair.key).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a pair");
        config.alpn_protocols = vec![b"h2".to_vec()];
        serve(host.listen(port), Some(Arc::new(config)));
    }
    let tls = TlsSpec { server_name: Some(NAME.into()), ca_file: Some(authority.file.clone()), verify: true };
    let check = HealthCheck::Grpc(GrpcCheck { service: String::new(), tls: Some(tls) });
    assert_eq!(host.check(&check, TLS_PORT, LONG), Ok(()));
    assert!(host.fails(&check, TLS_PORT + 1).starts_with("the server's certificate has expired"));
    // Plain text to a server that wants TLS, and the other way round.
    let plain = host.fails(&of(""), TLS_PORT);
    assert!(plain == "not a gRPC answer" || plain == "connection closed without an answer", "{plain}");
    serve(host.listen(PORT), None);
    assert_eq!(host.fails(&check, PORT), "not a TLS answer");
    host.hangs_and_refuses(&check);
    host.leaks_nothing(&check, TLS_PORT, true);
    Ok(())
}
