//! A backend for tests of many connections, a process of its own because of the limit of open files: greets with its
//! name in eight bytes, then gives every byte back. `echo NAME ADDRESS:PORT...`

#![expect(clippy::print_stdout, reason = "whoever started it waits for a line")]

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().context("a name is missing")?;
    ensure!(name.len() <= 8, "the name {name} has more than eight bytes");
    lb_tests::crowd::raise_file_limit()?;
    let mut greeting = [0; 8];
    greeting[..name.len()].copy_from_slice(name.as_bytes());
    for address in arguments {
        let address: SocketAddr = address.parse().with_context(|| format!("{address} is no address"))?;
        let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
        tokio::spawn(serve(listener, greeting));
    }
    println!("ready");
    std::future::pending().await
}

async fn serve(listener: TcpListener, greeting: [u8; 8]) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(echo(stream, greeting))),
            // Out of files, or the client has gone again.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn echo(mut stream: TcpStream, greeting: [u8; 8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(&greeting).await?;
    let mut buffer = [0; 512];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length]).await?;
    }
}
