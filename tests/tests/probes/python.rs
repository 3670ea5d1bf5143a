//! `grpc` against Google's own server library, as Debian packages it for Python.

use crate::{Host, LONG, PATIENCE, certificates::Authority};
use lb_tests::{
    lab::{Process, Result, wait_for_port},
    require,
    skip::Need,
};
use lb_userspace::model::{GrpcCheck, HealthCheck, TlsSpec};

/// Of the package python3-grpcio.
pub(crate) const LIBRARY: &str = "/usr/lib/python3/dist-packages/grpc/__init__.py";
pub(crate) const PORT: u16 = 50051;
const TLS: u16 = 50052;
const EXPIRED: u16 = 50053;
const NAME: &str = "grpc.example.com";

/// The messages of grpc.health.v1 are so small that they are written out.
const SERVER: &str = r"
import grpc, sys, time
from concurrent import futures

def check(request, context):
    if request == b'':
        return b'\x08\x01'
    if request == b'\x0a\x04down':
        return b'\x08\x02'
    if request == b'\x0a\x04hang':
        time.sleep(60)
    context.abort(grpc.StatusCode.NOT_FOUND, 'unknown service')

methods = {'Check': grpc.unary_unary_rpc_method_handler(check)}
server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(sys.argv[1], methods),))
server.add_insecure_port('127.0.0.1:' + sys.argv[2])
for port, key, certificate in zip(*[iter(sys.argv[3:])] * 3):
    pair = (open(key, 'rb').read(), open(certificate, 'rb').read())
    server.add_secure_port('127.0.0.1:' + port, grpc.ssl_server_credentials([pair]))
server.start()
server.wait_for_termination()
";

/// A server of this service; the rest are ports, keys and certificates.
pub(crate) fn server(host: &Host, service: &str, port: u16, more: &[String]) -> Result<Process> {
    let script = host.file("server.py", SERVER);
    let mut command = host.ns.command("/usr/bin/python3");
    command.arg(script).args([service, &port.to_string()]).args(more);
    let process = host.lab.spawn(&format!("grpc-{port}"), command)?;
    wait_for_port(&host.ns, Host::at(port), PATIENCE)?;
    Ok(process)
}

pub(crate) fn of(service: &str) -> HealthCheck {
    HealthCheck::Grpc(GrpcCheck { service: service.into(), tls: None })
}

#[test]
fn grpc_of_googles_library() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Path(LIBRARY));
    let host = Host::new()?;
    let authority = Authority::new(&host)?;
    let mut more = Vec::new();
    for (port, year) in [(TLS, 2999), (EXPIRED, 2020)] {
        let pair = authority.sign(&host, NAME, year);
        more.extend([port.to_string()]);
        more.extend([pair.key, pair.certificate].map(|path| path.display().to_string()));
    }
    let up = server(&host, "grpc.health.v1.Health", PORT, &more)?;
    let _other = server(&host, "shop.v1.Cart", PORT + 10, &[])?;
    assert_eq!(host.check(&of(""), PORT, LONG), Ok(()));
    assert_eq!(host.fails(&of("down"), PORT), "gRPC service is NOT_SERVING");
    assert_eq!(host.fails(&of("nobody"), PORT), "gRPC error: 5 NOT_FOUND: unknown service");
    let without = host.fails(&of(""), PORT + 10);
    assert!(without.starts_with("gRPC error: 12 UNIMPLEMENTED"), "{without}");
    assert_eq!(host.times_out(&of("hang"), PORT), "connected, but no answer within 300ms");

    let tls = TlsSpec { server_name: Some(NAME.into()), ca_file: Some(authority.file.clone()), verify: true };
    let tls = HealthCheck::Grpc(GrpcCheck { service: String::new(), tls: Some(tls) });
    assert_eq!(host.check(&tls, TLS, LONG), Ok(()));
    assert!(host.fails(&tls, EXPIRED).starts_with("the server's certificate has expired"));
    assert_eq!(host.fails(&tls, PORT), "not a TLS answer");
    assert_eq!(host.stops(&up, &tls, TLS), "connected, but no TLS handshake within 300ms");
    assert_eq!(host.stops(&up, &of(""), PORT), "connected, but no answer within 300ms");
    up.kill();
    assert_eq!(host.fails(&of(""), PORT), "connection refused");
    Ok(())
}
