//! Not shipped: a real `firelet` process, a client for it and packages to run on it, for whole-system tests and benchmarks.
//!
//! A test reads like a script:
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use harness::{Firelet, Function, Options, zip_files};
//!
//! let firelet = Firelet::start(Options::default()).await?;
//! let mut client = firelet.client().await?;
//! let code = zip_files(&[("app.py", 0o644, b"def handler(event, context): return event")])?;
//! client.create_function(&Function::new("echo", "python3.12", "app.handler", code)).await?;
//! assert_eq!(client.invoke("echo", r#"{"a":1}"#).await?.body, r#"{"a":1}"#);
//! firelet.stop().await
//! # }
//! ```

mod archive;
mod client;
mod server;

pub use archive::{zip_files, zip_folder};
pub use client::{Answer, Client, Function};
pub use server::{Firelet, Options};
