//! Random sequences of operations on versions, aliases and concurrency settings against a model, with restarts between.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::record::VersionId;
use crate::{LiveConcurrency, Provision};

const NAMES: [&str; 2] = ["f", "g"];
const ALIASES: [&str; 2] = ["blue", "live"];
const LIMIT: u32 = 20;
const MINIMUM: u32 = 5;

/// 0 is `$LATEST`.
type Version = u64;

/// A version besides, and its share in tenths.
type Other = Option<(Version, u8)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Version(Version),
    Alias(usize),
}

impl Scope {
    fn text(self) -> String {
        match self {
            Self::Version(number) => number.to_string(),
            Self::Alias(alias) => ALIASES[alias].to_owned(),
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Publish,
    DeleteVersion(Version),
    CreateAlias(usize, Version, Other),
    UpdateAlias(usize, Option<Version>, Option<Other>),
    DeleteAlias(usize),
    Reserve(u32),
    Unreserve,
    Provide(Scope, u32),
    Withdraw(Scope),
    Restart,
}

fn step() -> impl Strategy<Value = (usize, Step)> {
    let version = 0..5_u64;
    let other = || proptest::option::of((1..5_u64, 0..=10_u8));
    let scope = prop_oneof![(1..5_u64).prop_map(Scope::Version), (0..2_usize).prop_map(Scope::Alias)];
    let step = prop_oneof![
        4 => Just(Step::Publish),
        1 => (1..5_u64).prop_map(Step::DeleteVersion),
        4 => (0..2_usize, version.clone(), other()).prop_map(|(alias, main, other)| Step::CreateAlias(alias, main, other)),
        5 => (0..2_usize, proptest::option::of(version), proptest::option::of(other()))
            .prop_map(|(alias, main, other)| Step::UpdateAlias(alias, main, other)),
        1 => (0..2_usize).prop_map(Step::DeleteAlias),
        2 => (0..18_u32).prop_map(Step::Reserve),
        1 => Just(Step::Unreserve),
        5 => (scope.clone(), 1..12_u32).prop_map(|(scope, count)| Step::Provide(scope, count)),
        1 => scope.prop_map(Step::Withdraw),
        1 => Just(Step::Restart),
    ];
    (0..NAMES.len(), step)
}

#[derive(Debug, Clone, Default)]
struct Model {
    versions: BTreeSet<Version>,
    next: Version,
    aliases: BTreeMap<usize, (Version, Other)>,
    provided: BTreeMap<Scope, u32>,
    reserved: Option<u32>,
}

type Refusal = Result<(), &'static str>;
const ABSENT: Refusal = Err("ResourceNotFoundException");
const CONFLICT: Refusal = Err("ResourceConflictException");
const INVALID: Refusal = Err("InvalidParameterValueException");

impl Model {
    fn has(&self, version: Version) -> bool {
        version == 0 || self.versions.contains(&version)
    }

    fn provided_total(&self) -> u32 {
        self.provided.values().sum()
    }

    fn committed(&self) -> u32 {
        self.reserved.unwrap_or(0).max(self.provided_total())
    }

    /// Environments of each version that a setting asks for.
    fn shares(&self, scope: Scope, count: u32) -> Vec<(Version, u32)> {
        match scope {
            Scope::Version(number) => vec![(number, count)],
            Scope::Alias(alias) => match self.aliases[&alias] {
                (main, None) => vec![(main, count)],
                (main, Some((other, tenths))) => {
                    let share = (f64::from(count) * f64::from(tenths) / 10.0).round() as u32;
                    vec![(main, count - share), (other, share)]
                }
            },
        }
    }

    fn is_taken(&self, version: Version, but: Scope) -> bool {
        let others = self.provided.keys().filter(|scope| **scope != but);
        others.flat_map(|scope| self.shares(*scope, 0)).any(|(number, _)| number == version)
    }

    fn check_alias(&self, alias: usize, main: Version, other: Other) -> Refusal {
        match other {
            Some((other, _)) if !self.has(other) => return ABSENT,
            Some((other, _)) if other == main || main == 0 => return INVALID,
            _ => {}
        }
        if self.provided.contains_key(&Scope::Alias(alias)) {
            if main == 0 {
                return INVALID;
            }
            let others = other.map(|(other, _)| other);
            if [main].into_iter().chain(others).any(|version| self.is_taken(version, Scope::Alias(alias))) {
                return CONFLICT;
            }
        }
        Ok(())
    }
}

struct Run {
    world: World,
    models: [Model; 2],
    /// What the workers were told, as they remember it.
    environments: BTreeMap<(usize, Version), u32>,
    timeout: u32,
}

impl Run {
    async fn step(&mut self, function: usize, step: &Step) {
        let name = NAMES[function];
        let expected = self.judge(function, step);
        let plane = &self.world.plane;
        let nothing = |_: ()| Vec::new();
        let outcome: Result<Vec<Provision>, ApiError> = match step {
            Step::Publish => {
                self.timeout += 1;
                let change = json!({"FunctionName": name, "Timeout": self.timeout});
                let accepted = self.world.configure(change).await.unwrap();
                self.world.settle(&accepted, Ok(())).await;
                plane.publish_version(&publish_request(name)).await.map(|_| Vec::new())
            }
            Step::DeleteVersion(number) => {
                let request = delete_request(name, Some(&number.to_string()));
                let deleted = plane.delete_function(&request).await;
                if deleted.is_ok() {
                    self.environments.remove(&(function, *number));
                }
                deleted.map(|_| Vec::new())
            }
            Step::CreateAlias(alias, main, other) => {
                let request = json!({"FunctionName": name, "Name": ALIASES[*alias], "FunctionVersion": text(*main),
                    "RoutingConfig": routing(*other)});
                plane.create_alias(&serde_json::from_value(request).unwrap()).await.map(|_| Vec::new())
            }
            Step::UpdateAlias(alias, main, other) => {
                let request = json!({"FunctionName": name, "Name": ALIASES[*alias],
                    "FunctionVersion": main.map(text), "RoutingConfig": other.map(routing)});
                plane.update_alias(&serde_json::from_value(request).unwrap()).await.map(|(_, provisions)| provisions)
            }
            Step::DeleteAlias(alias) => {
                let request = json!({"FunctionName": name, "Name": ALIASES[*alias]});
                plane.delete_alias(&serde_json::from_value(request).unwrap()).await
            }
            Step::Reserve(count) => {
                let request = json!({"FunctionName": name, "ReservedConcurrentExecutions": count});
                plane.put_function_concurrency(&serde_json::from_value(request).unwrap()).await.map(|_| Vec::new())
            }
            Step::Unreserve => {
                let request = json!({"FunctionName": name});
                plane.delete_function_concurrency(&serde_json::from_value(request).unwrap()).await.map(nothing)
            }
            Step::Provide(scope, count) => {
                let request = json!({"FunctionName": name, "Qualifier": scope.text(),
                    "ProvisionedConcurrentExecutions": count});
                let request = serde_json::from_value(request).unwrap();
                plane.put_provisioned_concurrency_config(&request, NOW).await.map(|(_, provisions)| provisions)
            }
            Step::Withdraw(scope) => {
                let request = json!({"FunctionName": name, "Qualifier": scope.text()});
                plane.delete_provisioned_concurrency_config(&serde_json::from_value(request).unwrap()).await
            }
            Step::Restart => {
                let before = plane.functions();
                self.world.restart().await;
                assert_eq!(self.world.plane.functions(), before);
                self.environments.clear();
                Ok(self.world.plane.provisions())
            }
        };
        assert_eq!(outcome.as_ref().map(|_| ()).map_err(|error| error.name), expected, "{outcome:?}");
        for provision in outcome.unwrap_or_default() {
            let VersionId::Number(number) = provision.version.id else { panic!("environments of $LATEST") };
            let function = NAMES.iter().position(|name| *name == provision.version.function).unwrap();
            self.environments.insert((function, number), provision.count);
        }
        self.compare();
    }

    /// What has to come of a step; the model takes it.
    fn judge(&mut self, function: usize, step: &Step) -> Refusal {
        let unreserved = LIMIT - self.models.iter().map(Model::committed).sum::<u32>();
        let model = &mut self.models[function];
        let exists = |model: &Model, scope: Scope| match scope {
            Scope::Version(number) => model.has(number),
            Scope::Alias(alias) => model.aliases.contains_key(&alias),
        };
        let fits = |model: &Model, committed: u32| {
            let more = committed.saturating_sub(model.committed());
            more == 0 || unreserved >= more + MINIMUM
        };
        match *step {
            Step::Publish => {
                model.next += 1;
                model.versions.insert(model.next);
            }
            Step::DeleteVersion(number) => {
                let leads =
                    |(main, other): &(Version, Other)| *main == number || other.is_some_and(|(o, _)| o == number);
                if model.aliases.values().any(leads) {
                    return CONFLICT;
                }
                model.versions.remove(&number);
                model.provided.remove(&Scope::Version(number));
            }
            Step::CreateAlias(alias, main, other) => {
                if !model.has(main) {
                    return ABSENT;
                }
                if model.aliases.contains_key(&alias) {
                    return CONFLICT;
                }
                model.check_alias(alias, main, other)?;
                model.aliases.insert(alias, (main, other));
            }
            Step::UpdateAlias(alias, main, other) => {
                let Some((old_main, old_other)) = model.aliases.get(&alias).copied() else { return ABSENT };
                let (main, other) = (main.unwrap_or(old_main), other.unwrap_or(old_other));
                if !model.has(main) {
                    return ABSENT;
                }
                model.check_alias(alias, main, other)?;
                model.aliases.insert(alias, (main, other));
            }
            Step::DeleteAlias(alias) => {
                model.aliases.remove(&alias);
                model.provided.remove(&Scope::Alias(alias));
            }
            Step::Reserve(count) => {
                if count < model.provided_total() || !fits(model, count) {
                    return INVALID;
                }
                model.reserved = Some(count);
            }
            Step::Unreserve => model.reserved = None,
            Step::Provide(scope, count) => {
                if !exists(model, scope) {
                    return ABSENT;
                }
                let old = model.provided.get(&scope).copied().unwrap_or_default();
                let total = model.provided_total() - old + count;
                let fits = model.reserved.map_or_else(|| fits(model, total), |reserved| total <= reserved);
                let latest = matches!(scope, Scope::Alias(alias) if model.aliases[&alias].0 == 0);
                if !fits || latest {
                    return INVALID;
                }
                if model.shares(scope, 0).into_iter().any(|(version, _)| model.is_taken(version, scope)) {
                    return CONFLICT;
                }
                model.provided.insert(scope, count);
            }
            Step::Withdraw(scope) => {
                if !exists(model, scope) {
                    return ABSENT;
                }
                model.provided.remove(&scope);
            }
            Step::Restart => {}
        }
        Ok(())
    }

    fn compare(&self) {
        let plane = &self.world.plane;
        let unreserved = LIMIT - self.models.iter().map(Model::committed).sum::<u32>();
        let shown = plane.get_account_settings().account_limit.unwrap().unreserved_concurrent_executions;
        assert_eq!(shown, i32::try_from(unreserved).ok());
        let mut wanted = BTreeMap::new();
        for (function, (name, model)) in NAMES.iter().zip(&self.models).enumerate() {
            for (index, alias) in ALIASES.iter().enumerate() {
                // Just below and at the share of the second version.
                let tenths = model.aliases.get(&index).and_then(|(_, other)| other.map(|(_, tenths)| tenths));
                let share = f64::from(tenths.unwrap_or_default()) / 10.0;
                for chance in [0.0, (share - 1e-9).max(0.0), share.min(1.0 - 1e-9)] {
                    let expected = model.aliases.get(&index).map(|(main, other)| match other {
                        Some((other, _)) if chance < share => *other,
                        _ => *main,
                    });
                    let found = plane.resolve(name, Some(alias), chance).ok();
                    assert_eq!(found.map(|found| found.version.id.to_string()), expected.map(text));
                }
            }
            for (scope, count) in &model.provided {
                for (number, share) in model.shares(*scope, *count) {
                    assert_eq!(wanted.insert((function, number), share), None, "a version of two settings");
                }
            }
            let list = types::ListProvisionedConcurrencyConfigsRequest {
                function_name: Some((*name).to_owned()),
                ..Default::default()
            };
            let listed = plane.list_provisioned_concurrency_configs(&list, |_| LiveConcurrency::default()).unwrap();
            assert_eq!(listed.provisioned_concurrency_configs.unwrap().len(), model.provided.len());
        }
        let kept = |environments: &BTreeMap<(usize, Version), u32>| {
            environments.iter().filter(|(_, count)| **count > 0).map(|(key, count)| (*key, *count)).collect::<Vec<_>>()
        };
        assert_eq!(kept(&self.environments), kept(&wanted), "the workers keep something else");
    }
}

fn text(version: Version) -> String {
    if version == 0 { "$LATEST".to_owned() } else { version.to_string() }
}

fn routing(other: Other) -> Value {
    match other {
        Some((version, tenths)) => {
            json!({"AdditionalVersionWeights": {version.to_string(): f64::from(tenths) / 10.0}})
        }
        None => json!({}),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn versions_aliases_and_concurrency_behave_as_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let limits = Limits { concurrent_executions: LIMIT, unreserved_minimum: MINIMUM, ..Limits::default() };
            let world = World::over(Arc::new(MemoryMetadata::new()), Arc::new(MemoryBlobs::new()), limits).await;
            for name in NAMES {
                world.active(name).await;
            }
            let models = [Model::default(), Model::default()];
            let mut run = Run { world, models, environments: BTreeMap::new(), timeout: 10 };
            for (function, step) in &steps {
                run.step(*function, step).await;
            }
        });
    }
}
