//! The MySQL and MariaDB check: a login; with a role asked for, whether the server is read-only.
//!
//! Without a user in the settings somebody unknown logs in, and "access denied" passes: a server that says so accepts
//! connections and answers. A check that ended after the server's greeting would count as an error of the connection
//! there, and after `max_connect_errors` of them the server would shut this host out.

use super::{Deadline, Peer, ProbeFailure, Stage, connect, judge_role, secret};
use crate::model::{MysqlCheck, Role};
use mysql_common::{
    auth::plugins::{ChallengeResponsePlugin as _, Context, Response},
    constants::CapabilityFlags,
    io::ParseBuf,
    packets::{AuthPlugin, AuthSwitchRequest, ErrPacket, HandshakePacket, HandshakeResponse},
    proto::MySerialize as _,
};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Largest packet that is read; what is asked for fits many times.
const MAX_PACKET: usize = 64 * 1024;
/// Packets of a login and of a result at most.
const MAX_PACKETS: usize = 32;
/// Who logs in where no user is set.
const NOBODY: &str = "lbd";
/// A server that does not hang up within this after it was told goodbye is left alone.
const GOODBYE: Duration = Duration::from_millis(50);
const WHAT: &str = "MySQL";

/// ER_DBACCESS_DENIED_ERROR, ER_ACCESS_DENIED_ERROR, ER_HOST_NOT_PRIVILEGED, ER_ACCESS_DENIED_NO_PASSWORD_ERROR and
/// ER_MUST_CHANGE_PASSWORD_LOGIN.
const DENIED: [u16; 5] = [1044, 1045, 1130, 1698, 1862];
/// `super_read_only` of MySQL switches this on as well; MariaDB has only this.
const QUERY: &str = "SELECT @@global.read_only";

const COM_QUIT: u8 = 0x01;
const COM_QUERY: u8 = 0x03;

/// Passes if the server at `address` lets the user in and has the role.
pub async fn probe(
    peer: impl Into<Peer>,
    check: &MysqlCheck,
    deadline: Deadline,
) -> Result<(), ProbeFailure> {
    let password = match &check.password_file {
        Some(file) => deadline.limit(Stage::Connect, secret::read(file)).await?,
        None => String::new(),
    };
    let stream = deadline.limit(Stage::Connect, connect(peer.into())).await?;
    let mut server = Server { stream, sequence: 0, capabilities: CapabilityFlags::CLIENT_PROTOCOL_41 };
    let judged = async {
        let user = check.user.as_deref();
        match server.log_in(user.unwrap_or(NOBODY), &password).await {
            Err(Refusal::Error(code, _)) if user.is_none() && DENIED.contains(&code) => return Ok(()),
            other => other?,
        }
        let found = match check.role {
            Role::Any => Role::Any,
            Role::Primary | Role::Replica | Role::PreferReplica => server.role().await?,
        };
        server.quit().await;
        judge_role(found, check.role)
    };
    deadline.limit(Stage::Answer, judged).await
}

/// Why the server's answer ends the check.
enum Refusal {
    /// What the server calls an error.
    Error(u16, String),
    Other(ProbeFailure),
}

impl From<ProbeFailure> for Refusal {
    fn from(failure: ProbeFailure) -> Self {
        Self::Other(failure)
    }
}

impl From<Refusal> for ProbeFailure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Error(code, said) => Self::Server { what: WHAT, said: format!("{code}: {said}") },
            Refusal::Other(failure) => failure,
        }
    }
}

fn not_mysql() -> Refusal {
    ProbeFailure::NotProtocol { what: WHAT }.into()
}

/// What an authentication method may ask for.
#[derive(Clone, Copy)]
struct Login<'a> {
    password: &'a [u8],
    scramble: &'a [u8],
}

impl Context for Login<'_> {
    fn pass(&self) -> &[u8] {
        self.password
    }
    fn is_ipc_transport(&self) -> bool {
        false
    }
    fn is_tls_transport(&self) -> bool {
        false
    }
    fn scramble(&self) -> &[u8] {
        self.scramble
    }
    fn server_key_pem(&self) -> Option<&[u8]> {
        None
    }
}

struct Server {
    stream: TcpStream,
    /// Of the next packet, either way.
    sequence: u8,
    capabilities: CapabilityFlags,
}

impl Server {
    async fn log_in(&mut self, user: &str, password: &str) -> Result<(), Refusal> {
        // Before the greeting a server may say that it has no room. It does not know our capabilities then, and its
        // message has no SQL state.
        self.capabilities = CapabilityFlags::empty();
        let greeting = self.read().await?;
        let greeting: HandshakePacket<'_> = ParseBuf(&greeting).parse(()).map_err(|_| not_mysql())?;
        if greeting.protocol_version() != 10 {
            return Err(not_mysql());
        }
        let wanted = CapabilityFlags::CLIENT_PROTOCOL_41
            | CapabilityFlags::CLIENT_SECURE_CONNECTION
            | CapabilityFlags::CLIENT_LONG_PASSWORD
            | CapabilityFlags::CLIENT_PLUGIN_AUTH;
        self.capabilities = greeting.capabilities() & wanted;
        let mut scramble = greeting.nonce();
        let offered = greeting.auth_plugin().unwrap_or(AuthPlugin::MysqlNativePassword);
        // A method that is not known here gives way to one that the server will then switch from.
        let plugin = match offered {
            AuthPlugin::CachingSha2Password => AuthPlugin::CachingSha2Password,
            _ => AuthPlugin::MysqlNativePassword,
        };
        let mut method = plugin.init().map_err(|_| not_mysql())?;
        let login = Login { password: password.as_bytes(), scramble: &scramble };
        let first = method.run(login, &scramble).map_err(unable)?;
        let version = greeting.server_version_parsed().unwrap_or((0, 0, 0));
        let response = HandshakeResponse::new(
            first.data().map(<[u8]>::to_vec),
            version,
            Some(user.as_bytes()),
            None::<&[u8]>,
            Some(plugin),
            self.capabilities,
            None,
            MAX_PACKET as u32,
        );
        let mut packet = Vec::new();
        response.serialize(&mut packet);
        self.write(&packet).await?;
        for _ in 0..MAX_PACKETS {
            let packet = self.read().await?;
            let answer: Response = match packet.first() {
                Some(0x00) => return Ok(()),
                Some(0x01) => {
                    let login = Login { password: password.as_bytes(), scramble: &scramble };
                    method.run(login, &packet[1..]).map_err(unable)?
                }
                Some(0xfe) => {
                    let switch: AuthSwitchRequest<'_> =
                        ParseBuf(&packet).parse(()).map_err(|_| not_mysql())?;
                    let plugin = switch.auth_plugin();
                    // Anybody could ask for the password itself, or for what is as good.
                    if matches!(plugin, AuthPlugin::MysqlClearPassword | AuthPlugin::MysqlOldPassword) {
                        return Err(unsupported(&plugin));
                    }
                    method = plugin.init().map_err(|_| unsupported(&plugin))?;
                    scramble = switch.plugin_data().to_vec();
                    let login = Login { password: password.as_bytes(), scramble: &scramble };
                    method.run(login, &scramble).map_err(|_| unsupported(&plugin))?
                }
                _ => return Err(not_mysql()),
            };
            if let Some(data) = answer.data() {
                self.write(data).await?;
            }
        }
        Err(not_mysql())
    }

    async fn role(&mut self) -> Result<Role, Refusal> {
        self.sequence = 0;
        let mut query = vec![COM_QUERY];
        query.extend_from_slice(QUERY.as_bytes());
        self.write(&query).await?;
        // The number of columns, their descriptions, an end, the rows, an end.
        let mut ends = 0;
        for _ in 0..MAX_PACKETS {
            let packet = self.read().await?;
            if packet.first() == Some(&0xfe) && packet.len() < 9 {
                ends += 1;
            } else if ends == 1 {
                let value = ParseBuf(&packet).checked_eat_lenenc_str().ok_or_else(not_mysql)?;
                let writable = value == b"0" || value.eq_ignore_ascii_case(b"OFF");
                return Ok(if writable { Role::Primary } else { Role::Replica });
            }
        }
        Err(not_mysql())
    }

    /// Says goodbye and lets the server hang up, which spares its log a line about a lost connection.
    async fn quit(&mut self) {
        self.sequence = 0;
        let mut rest = [0; 16];
        let goodbye = async {
            if self.write(&[COM_QUIT]).await.is_ok() {
                let _ = self.stream.read(&mut rest).await;
            }
        };
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
    }

    /// The next packet; one that says that there was an error is one.
    async fn read(&mut self) -> Result<Vec<u8>, Refusal> {
        let failure = |error: std::io::Error| ProbeFailure::from_io(&error, Stage::Answer);
        let mut header = [0; 4];
        self.stream.read_exact(&mut header).await.map_err(failure)?;
        let [a, b, c, sequence] = header;
        let length = u32::from_le_bytes([a, b, c, 0]) as usize;
        if length == 0 || length > MAX_PACKET || sequence != self.sequence {
            return Err(not_mysql());
        }
        self.sequence = self.sequence.wrapping_add(1);
        let mut packet = vec![0; length];
        self.stream.read_exact(&mut packet).await.map_err(failure)?;
        if packet[0] == 0xff {
            let error: ErrPacket<'_> = ParseBuf(&packet).parse(self.capabilities).map_err(|_| not_mysql())?;
            if error.is_error() {
                let error = error.server_error();
                let said: String = error.message_str().chars().take(200).collect();
                return Err(Refusal::Error(error.error_code(), said));
            }
        }
        Ok(packet)
    }

    async fn write(&mut self, packet: &[u8]) -> Result<(), Refusal> {
        let length = u32::try_from(packet.len()).unwrap_or(u32::MAX).to_le_bytes();
        let mut bytes = vec![length[0], length[1], length[2], self.sequence];
        bytes.extend_from_slice(packet);
        self.sequence = self.sequence.wrapping_add(1);
        let written = self.stream.write_all(&bytes).await;
        written.map_err(|error| ProbeFailure::from_io(&error, Stage::Answer).into())
    }
}

fn unable(error: impl std::fmt::Display) -> Refusal {
    ProbeFailure::CannotRun { what: format!("login: {error}") }.into()
}

fn unsupported(plugin: &AuthPlugin<'_>) -> Refusal {
    let name = String::from_utf8_lossy(plugin.as_bytes()).trim_end_matches('\0').to_owned();
    ProbeFailure::CannotRun {
        what: format!("the server asks for the login method '{name}', which lbd does not offer"),
    }
    .into()
}
