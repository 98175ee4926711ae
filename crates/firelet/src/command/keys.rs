//! `firelet keys`: the access keys that a server with `--auth sigv4` lets in.

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, bail};
use control_plane::keys::AccessKey;
use control_plane::record::Timestamp;
use serde_json::json;

use crate::cli::{KeysAction, KeysOptions};
use crate::config::default_data_dir;
use crate::secrets::Secrets;

/// Longest description, in bytes.
const MAX_DESCRIPTION: usize = 256;

pub fn run(options: KeysOptions) -> anyhow::Result<ExitCode> {
    let data_dir = options.data_dir.unwrap_or_else(default_data_dir);
    let secrets = Secrets::open(&data_dir)?;
    match options.action {
        KeysAction::Create { description } => create(&secrets, &description, options.json)?,
        KeysAction::List => list(&secrets, options.json)?,
        KeysAction::Delete { id } => {
            secrets.change_keys(|keys| {
                let before = keys.len();
                keys.retain(|key| key.id != id);
                if keys.len() == before {
                    bail!("there is no access key {id}; `firelet keys list` shows those that there are");
                }
                Ok(())
            })?;
            eprintln!("deleted {id}; a running server refuses it within a second");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn create(secrets: &Secrets, description: &str, json: bool) -> anyhow::Result<()> {
    if description.len() > MAX_DESCRIPTION || description.contains(char::is_control) {
        bail!("a description is one line of at most {MAX_DESCRIPTION} bytes");
    }
    let key = AccessKey::generate(description, Timestamp::from(SystemTime::now()))?;
    let kept = key.clone();
    secrets.change_keys(move |keys| {
        keys.push(kept);
        Ok(())
    })?;
    if json {
        let value = json!({ "AccessKeyId": key.id, "SecretAccessKey": key.secret, "Description": key.description });
        println!("{}", serde_json::to_string_pretty(&value).context("a key is no JSON")?);
    } else {
        println!("AWS_ACCESS_KEY_ID={}\nAWS_SECRET_ACCESS_KEY={}", key.id, key.secret);
    }
    eprintln!("whoever has this key may do everything; it is not shown again");
    Ok(())
}

fn list(secrets: &Secrets, json: bool) -> anyhow::Result<()> {
    let keys = secrets.keys()?;
    if json {
        let shown = |key: &AccessKey| json!({ "AccessKeyId": key.id, "CreateDate": key.created.to_string(), "Description": key.description });
        let shown: Vec<_> = keys.iter().map(shown).collect();
        println!("{}", serde_json::to_string_pretty(&shown).context("keys are no JSON")?);
        return Ok(());
    }
    if keys.is_empty() {
        eprintln!("no access keys yet; make one with `firelet keys create`");
        return Ok(());
    }
    println!("{:20}  {:28}  DESCRIPTION", "ACCESS KEY", "CREATED");
    for key in &keys {
        println!("{:20}  {:28}  {}", key.id, key.created.to_string(), key.description);
    }
    Ok(())
}
