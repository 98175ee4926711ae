//! The environment variables of a runtime and of its extensions, as Lambda sets them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use runtimes::{Language, Resolved};

use telemetry::lines::{InitType, LogFormat};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::spec::EnvironmentSpec;

/// Access key, secret and token that the function's SDKs sign with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: String,
    /// `AWS_SESSION_TOKEN`.
    pub session_token: String,
    /// Until when they are good.
    pub expires: SystemTime,
}

/// Gives each new environment of a function credentials of its role.
pub type IssueCredentials = Arc<dyn Fn(&EnvironmentSpec) -> Credentials + Send + Sync>;

impl Credentials {
    /// Credentials in AWS's form that name nobody.
    pub fn of_nobody() -> Self {
        let random = || uuid::Uuid::new_v4().simple().to_string();
        Self {
            access_key_id: format!("ASIA{}", random()[..16].to_uppercase()),
            secret_access_key: random() + &random()[..8],
            session_token: random() + &random(),
            expires: SystemTime::now() + Duration::from_secs(24 * 60 * 60),
        }
    }
}

impl From<Credentials> for runtime_api::Credentials {
    fn from(credentials: Credentials) -> Self {
        let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
        let Credentials { access_key_id, secret_access_key, session_token, expires } = credentials;
        // Cannot fail: every component of the form is one that a date with a time has.
        let expiration = OffsetDateTime::from(expires).format(form).unwrap_or_default();
        Self { access_key_id, secret_access_key, session_token, expiration }
    }
}

/// How a function comes by its credentials.
#[derive(Debug, Clone, Copy)]
pub enum Access<'a> {
    /// They are among its variables.
    Keys(&'a Credentials),
    /// It asks the endpoint beside the Runtime API, with this token: variables would grow old in a snapshot.
    Endpoint(&'a str),
}

/// What is particular to one environment.
#[derive(Debug, Clone, Copy)]
pub struct Particulars<'a> {
    /// Where the Runtime API listens inside, `host:port`.
    pub runtime_api: &'a str,
    /// The environment's log stream.
    pub log_stream: &'a str,
    /// Why it is initialized.
    pub initialization_type: InitType,
    /// Invocations that it serves at once.
    pub concurrency: u32,
    /// Its credentials.
    pub access: Access<'a>,
}

/// Variables that only the runtime sees, never an extension.
const RUNTIME_ONLY: [&str; 7] = [
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_XRAY_CONTEXT_MISSING",
    "LAMBDA_RUNTIME_DIR",
    "LAMBDA_TASK_ROOT",
    "_HANDLER",
];

/// The whole environment of the runtime process.
///
/// Precedence, lowest first: the runtime's overridable defaults, the function's own variables, the platform's.
pub fn for_runtime(spec: &EnvironmentSpec, resolved: &Resolved, own: Particulars<'_>) -> Vec<(String, String)> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |name: &str, value: &str| {
        all.insert(name.to_owned(), value.to_owned());
    };
    set("TZ", ":UTC");
    set("AWS_XRAY_CONTEXT_MISSING", "LOG_ERROR");
    set("AWS_XRAY_DAEMON_ADDRESS", "169.254.79.129:2000");
    for (name, value) in &resolved.env {
        set(name, value);
    }
    for (name, value) in &spec.environment {
        set(name, value);
    }
    let memory = spec.memory_mb.to_string();
    for (name, value) in [
        ("_AWS_XRAY_DAEMON_ADDRESS", "169.254.79.129"),
        ("_AWS_XRAY_DAEMON_PORT", "2000"),
        ("_HANDLER", &spec.handler),
        ("AWS_DEFAULT_REGION", &spec.region),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", &memory),
        ("AWS_LAMBDA_FUNCTION_NAME", &spec.function_name),
        ("AWS_LAMBDA_FUNCTION_VERSION", &spec.version),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", own.initialization_type.name()),
        ("AWS_LAMBDA_LOG_GROUP_NAME", &spec.logging.group),
        ("AWS_LAMBDA_LOG_STREAM_NAME", own.log_stream),
        ("AWS_LAMBDA_RUNTIME_API", own.runtime_api),
        ("AWS_REGION", &spec.region),
        ("LAMBDA_RUNTIME_DIR", "/var/runtime"),
        ("LAMBDA_TASK_ROOT", "/var/task"),
    ] {
        set(name, value);
    }
    // No variable of the function's may make the runtime ask for several where one is given.
    all.remove("AWS_LAMBDA_MAX_CONCURRENCY");
    if own.concurrency > 1 {
        all.insert("AWS_LAMBDA_MAX_CONCURRENCY".to_owned(), own.concurrency.to_string());
        all.insert("AWS_LAMBDA_INITIALIZATION_TYPE".to_owned(), "lambda-managed-instances".to_owned());
    }
    let mut set = |name: &str, value: &str| {
        all.insert(name.to_owned(), value.to_owned());
    };
    match own.access {
        Access::Keys(credentials) => {
            set("AWS_ACCESS_KEY_ID", &credentials.access_key_id);
            set("AWS_SECRET_ACCESS_KEY", &credentials.secret_access_key);
            set("AWS_SESSION_TOKEN", &credentials.session_token);
        }
        Access::Endpoint(token) => {
            let uri = format!("http://{}/2021-04-23/credentials", own.runtime_api);
            set("AWS_CONTAINER_CREDENTIALS_FULL_URI", &uri);
            set("AWS_CONTAINER_AUTHORIZATION_TOKEN", token);
        }
    }
    if let Some(execution_env) = &resolved.execution_env {
        set("AWS_EXECUTION_ENV", execution_env);
    } else {
        all.remove("AWS_EXECUTION_ENV");
    }
    match spec.logging.format {
        LogFormat::Json => {
            all.insert("AWS_LAMBDA_LOG_FORMAT".to_owned(), "JSON".to_owned());
            if let Some(level) = &spec.logging.application_level {
                all.insert("AWS_LAMBDA_LOG_LEVEL".to_owned(), level.clone());
            }
        }
        LogFormat::Text => {
            all.insert("AWS_LAMBDA_LOG_FORMAT".to_owned(), "Text".to_owned());
        }
    }
    all.into_iter().collect()
}

/// What a runtime is started with before it is known for which function.
pub fn before_the_function(resolved: &Resolved, memory_mb: u32) -> Vec<(String, String)> {
    let execution_env = resolved.execution_env.as_ref().map(|value| ("AWS_EXECUTION_ENV".to_owned(), value.clone()));
    // These take the limits of their heaps from it when they start; for others one kind serves functions of all sizes.
    let sized = matches!(resolved.language, Language::Nodejs | Language::Java);
    let memory = sized.then(|| ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE".to_owned(), memory_mb.to_string()));
    resolved.env.iter().cloned().chain(execution_env).chain(memory).collect()
}

/// Whether a function sets a variable that the loader, the C library or the interpreter reads when a process starts, to
/// another value than in `start`.
pub fn matter_at_start(own: &BTreeMap<String, String>, start: &[(String, String)]) -> bool {
    // The loader, the C library and its resolver; OpenSSL; Python; Node.js (V8, libuv); Java; Ruby and its gems.
    const PREFIXES: [&str; 18] = [
        "LD_", "LC_", "MALLOC_", "GLIBC_", "GCONV_", "NLS", "RES_", "OPENSSL_", "PYTHON", "NODE_", "UV_", "ICU_",
        "JAVA_", "JDK_", "_JAVA_", "RUBY", "GEM_", "BUNDLE",
    ];
    const NAMES: [&str; 6] = ["LANG", "LANGUAGE", "LOCALDOMAIN", "HOSTALIASES", "LOCPATH", "CLASSPATH"];
    own.iter().any(|(name, value)| {
        let read = NAMES.contains(&name.as_str()) || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        read && !start.iter().any(|(other, set)| other == name && set == value)
    })
}

/// The environment of an external extension: what the runtime has, less what is the runtime's alone.
pub fn for_extension(runtime: &[(String, String)]) -> Vec<(String, String)> {
    runtime
        .iter()
        .filter(|(name, _)| !name.starts_with('_') && !RUNTIME_ONLY.contains(&name.as_str()))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::spec::{CodeRef, LogSettings, VersionKey};

    #[test]
    fn credentials_of_nobody_have_the_form_of_temporary_ones_and_differ() {
        let (one, two) = (Credentials::of_nobody(), Credentials::of_nobody());
        assert_eq!(one.access_key_id.len(), 20);
        assert!(one.access_key_id.starts_with("ASIA"));
        assert_eq!(one.secret_access_key.len(), 40);
        assert_ne!(one.secret_access_key, two.secret_access_key);
    }

    #[test]
    fn variables_that_are_read_at_the_start_matter_unless_they_are_the_same() {
        let start = [("LANG".to_owned(), "en_US.UTF-8".to_owned())];
        let matter =
            |name: &str, value: &str| matter_at_start(&BTreeMap::from([(name.to_owned(), value.to_owned())]), &start);
        assert!(matter("LANG", "C") && matter("PYTHONPATH", "/var/task/lib") && matter("LD_PRELOAD", "/opt/x.so"));
        assert!(matter("NODE_OPTIONS", "--inspect") && matter("UV_THREADPOOL_SIZE", "8") && matter("RUBYOPT", "-w"));
        assert!(
            matter("JAVA_TOOL_OPTIONS", "-Xss1m") && matter("_JAVA_OPTIONS", "-Xss1m") && matter("GEM_HOME", "/opt")
        );
        assert!(!matter("LANG", "en_US.UTF-8") && !matter("TABLE", "t") && !matter("TZ", "EST5"));
    }

    fn spec() -> EnvironmentSpec {
        EnvironmentSpec {
            key: VersionKey("f:1".to_owned()),
            function_name: "f".to_owned(),
            version: "1".to_owned(),
            function_arn: "arn:aws:lambda:eu-west-1:000000000000:function:f".to_owned(),
            account_id: "000000000000".to_owned(),
            region: "eu-west-1".to_owned(),
            role: "arn:aws:iam::000000000000:role/r".to_owned(),
            runtime: "python3.12".to_owned(),
            runtime_version_arn: None,
            handler: "index.handler".to_owned(),
            code: CodeRef { digest: String::new(), path: PathBuf::new() },
            layers: vec![],
            environment: BTreeMap::from([
                ("LANG".to_owned(), "C".to_owned()),
                ("AWS_REGION".to_owned(), "mine".to_owned()),
                ("COLOUR".to_owned(), "red".to_owned()),
            ]),
            memory_mb: 512,
            timeout: Duration::from_secs(3),
            tmp_mb: 512,
            max_concurrency: 1,
            logging: LogSettings {
                group: "/aws/lambda/f".to_owned(),
                custom_group: false,
                format: LogFormat::Json,
                application_level: Some("WARN".to_owned()),
                system_level: None,
            },
            snap_start: None,
        }
    }

    fn variables(execution_env: Option<&str>) -> BTreeMap<String, String> {
        variables_with(execution_env, false)
    }

    fn variables_with(execution_env: Option<&str>, endpoint: bool) -> BTreeMap<String, String> {
        variables_of(&spec(), execution_env, endpoint, 1)
    }

    fn variables_of(
        spec: &EnvironmentSpec,
        execution_env: Option<&str>,
        endpoint: bool,
        concurrency: u32,
    ) -> BTreeMap<String, String> {
        let resolved = Resolved {
            runtime: "python3.12".to_owned(),
            serves: String::new(),
            warning: None,
            root: Default::default(),
            command: vec![],
            env: vec![("LANG".to_owned(), "en_US.UTF-8".to_owned()), ("PATH".to_owned(), "/var/lang/bin".to_owned())],
            execution_env: execution_env.map(str::to_owned),
            runtime_version: String::new(),
            language: Language::Python,
            wrapper_allowed: true,
            log_fd: true,
            compiler: None,
            waits: runtimes::Waits::Cloned,
        };
        let credentials = Credentials {
            access_key_id: "ASIA".to_owned(),
            secret_access_key: "s".to_owned(),
            session_token: "t".to_owned(),
            expires: SystemTime::UNIX_EPOCH,
        };
        let own = Particulars {
            runtime_api: "127.0.0.1:9001",
            log_stream: "2026/01/01/[1]abc",
            initialization_type: InitType::OnDemand,
            concurrency,
            access: if endpoint { Access::Endpoint("token") } else { Access::Keys(&credentials) },
        };
        for_runtime(spec, &resolved, own).into_iter().collect()
    }

    #[test]
    fn the_runtime_is_told_of_several_invocations_by_the_platform_alone() {
        let mut spec = spec();
        spec.environment.insert("AWS_LAMBDA_MAX_CONCURRENCY".to_owned(), "9".to_owned());
        let one = variables_of(&spec, None, false, 1);
        assert!(!one.contains_key("AWS_LAMBDA_MAX_CONCURRENCY"));
        let several = variables_of(&spec, None, false, 4);
        assert_eq!(several["AWS_LAMBDA_MAX_CONCURRENCY"], "4");
        assert_eq!(several["AWS_LAMBDA_INITIALIZATION_TYPE"], "lambda-managed-instances");
    }

    #[test]
    fn credentials_are_among_the_variables_or_behind_the_endpoint_never_both() {
        let (keys, endpoint) = (variables(None), variables_with(None, true));
        let secrets = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
        let container = ["AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_CREDENTIALS_FULL_URI"];
        for (name, with, without) in secrets
            .map(|name| (name, &keys, &endpoint))
            .into_iter()
            .chain(container.map(|name| (name, &endpoint, &keys)))
        {
            assert!(with.contains_key(name) && !without.contains_key(name), "{name}");
        }
        assert_eq!(endpoint[container[1]], "http://127.0.0.1:9001/2021-04-23/credentials");
        assert_eq!(endpoint[container[0]], "token");
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045);
        let credentials = Credentials { expires, ..Credentials::of_nobody() };
        assert_eq!(runtime_api::Credentials::from(credentials).expiration, "2026-01-02T03:04:05Z");
    }

    #[test]
    fn the_functions_variables_override_the_runtimes_defaults_but_not_the_platforms() {
        let variables = variables(Some("AWS_Lambda_python3.12"));
        assert_eq!(variables["LANG"], "C");
        assert_eq!(variables["PATH"], "/var/lang/bin");
        assert_eq!(variables["AWS_REGION"], "eu-west-1");
        assert_eq!(variables["COLOUR"], "red");
        assert_eq!(variables["TZ"], ":UTC");
        assert_eq!(variables["AWS_EXECUTION_ENV"], "AWS_Lambda_python3.12");
        assert_eq!(variables["AWS_LAMBDA_LOG_LEVEL"], "WARN");
    }

    #[test]
    fn a_custom_runtime_has_no_execution_env() {
        assert!(!variables(None).contains_key("AWS_EXECUTION_ENV"));
    }

    #[test]
    fn an_extension_sees_nothing_that_is_the_runtimes_alone() {
        let runtime: Vec<_> = variables(Some("AWS_Lambda_python3.12")).into_iter().collect();
        let extension: BTreeMap<_, _> = for_extension(&runtime).into_iter().collect();
        assert!(extension.keys().all(|name| !name.starts_with('_')));
        for name in RUNTIME_ONLY {
            assert!(!extension.contains_key(name), "{name}");
        }
        assert_eq!(extension["AWS_LAMBDA_RUNTIME_API"], "127.0.0.1:9001");
        assert_eq!(extension["COLOUR"], "red");
    }
}
