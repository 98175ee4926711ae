//! An empty function for `provided.al2023`: asks for an invocation and answers `{}`, over one raw connection. It does the least
//! that a runtime can do, so that what is left of an invocation's time is Firelet's and the kernel's.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result};

/// Serves invocations for ever.
pub fn run() -> Result<()> {
    let address = std::env::var("AWS_LAMBDA_RUNTIME_API").context("AWS_LAMBDA_RUNTIME_API is not set")?;
    let stream = TcpStream::connect(&address)?;
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let next = format!("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: {address}\r\n\r\n");
    loop {
        writer.write_all(next.as_bytes())?;
        let id = read_answer(&mut reader)?.context("no request id")?;
        let response = format!(
            "POST /2018-06-01/runtime/invocation/{id}/response HTTP/1.1\r\nHost: {address}\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        writer.write_all(response.as_bytes())?;
        read_answer(&mut reader)?;
    }
}

/// Reads one answer to its end; returns the invocation's id where it carries one.
fn read_answer(reader: &mut impl BufRead) -> Result<Option<String>> {
    let (mut id, mut length, mut line) = (None, 0, String::new());
    loop {
        line.clear();
        anyhow::ensure!(reader.read_line(&mut line)? > 0, "the Runtime API closed the connection");
        let Some((name, value)) = line.trim_end().split_once(':') else {
            if line.trim_end().is_empty() {
                break;
            }
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "lambda-runtime-aws-request-id" => id = Some(value.trim().to_owned()),
            "content-length" => length = value.trim().parse()?,
            _ => {}
        }
    }
    std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
    Ok(id)
}
