//! HTTP: the Lambda API, invoke, and the side services that tools call (STS, IAM roles, Logs).
