//! Random sequences of operations against a small model, with restarts in between.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::record::{FunctionVersion, State, UpdateStatus};

#[derive(Debug, Clone)]
enum Step {
    Create { name: usize, content: u8, publish: bool },
    Code { name: usize, content: u8, publish: bool },
    Timeout { name: usize, timeout: u8, stale: bool },
    Complete { name: usize, ok: bool },
    Publish { name: usize },
    DeleteVersion { name: usize, number: u64 },
    Delete { name: usize },
    Restart,
}

const NAMES: [&str; 2] = ["f", "g"];

fn step() -> impl Strategy<Value = Step> {
    let name = 0..NAMES.len();
    prop_oneof![
        3 => (name.clone(), 0..3_u8, any::<bool>())
            .prop_map(|(name, content, publish)| Step::Create { name, content, publish }),
        4 => (name.clone(), 0..3_u8, any::<bool>())
            .prop_map(|(name, content, publish)| Step::Code { name, content, publish }),
        3 => (name.clone(), 1..4_u8, proptest::bool::weighted(0.2))
            .prop_map(|(name, timeout, stale)| Step::Timeout { name, timeout, stale }),
        8 => (name.clone(), proptest::bool::weighted(0.8)).prop_map(|(name, ok)| Step::Complete { name, ok }),
        4 => name.clone().prop_map(|name| Step::Publish { name }),
        1 => (name.clone(), 1..5_u64).prop_map(|(name, number)| Step::DeleteVersion { name, number }),
        1 => name.prop_map(|name| Step::Delete { name }),
        2 => Just(Step::Restart),
    ]
}

/// What a version of code and settings comes down to here.
type Made = (u8, u8);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Creating,
    Ready,
    Updating,
    /// It never ran.
    Dead,
    /// The last update failed.
    Stuck,
}

#[derive(Debug, Clone)]
struct ModelFunction {
    phase: Phase,
    latest: Made,
    /// What runs, once something can.
    running: Option<Made>,
    /// Grows with each change of `latest`.
    content: u64,
    versions: BTreeMap<u64, (Made, u64)>,
    next: u64,
}

impl ModelFunction {
    fn publish(&mut self) {
        if self.versions.values().next_back().is_none_or(|(_, content)| *content != self.content) {
            self.versions.insert(self.next, (self.latest, self.content));
            self.next += 1;
        }
    }

    fn change(&mut self, made: Made) {
        self.content += u64::from(made != self.latest);
        self.latest = made;
        self.phase = if self.running.is_some() { Phase::Updating } else { Phase::Creating };
    }

    fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Ready | Phase::Dead | Phase::Stuck)
    }
}

struct Run {
    world: World,
    model: BTreeMap<&'static str, ModelFunction>,
    /// Every record that was ever seen, by its revision id.
    revisions: HashMap<String, FunctionVersion>,
    packages: Vec<Blob>,
}

impl Run {
    async fn step(&mut self, step: &Step) {
        match *step {
            Step::Create { name, content, publish } => self.create(NAMES[name], content, publish).await,
            Step::Code { name, content, publish } => self.code(NAMES[name], content, publish).await,
            Step::Timeout { name, timeout, stale } => self.timeout(NAMES[name], timeout, stale).await,
            Step::Complete { name, ok } => self.complete(NAMES[name], ok).await,
            Step::Publish { name } => self.publish(NAMES[name]).await,
            Step::DeleteVersion { name, number } => self.delete_version(NAMES[name], number).await,
            Step::Delete { name } => {
                let outcome = self.world.plane.delete_function(&delete_request(NAMES[name], None)).await;
                assert_eq!(outcome.is_ok(), self.model.remove(NAMES[name]).is_some());
            }
            Step::Restart => {
                let before = self.world.plane.functions();
                self.world.restart().await;
                assert_eq!(self.world.plane.functions(), before);
            }
        }
        self.compare();
    }

    async fn create(&mut self, name: &'static str, content: u8, publish: bool) {
        let mut request = create_with(name, json!({"Publish": publish}));
        request.code.as_mut().unwrap().zip_file = Some(self.packages[usize::from(content)].clone());
        let outcome = self.world.plane.create_function(&request, NOW).await;
        assert_eq!(outcome.is_ok(), !self.model.contains_key(name));
        if outcome.is_ok() {
            let mut function = ModelFunction {
                phase: Phase::Creating,
                latest: (content, 3),
                running: None,
                content: 1,
                versions: BTreeMap::new(),
                next: 1,
            };
            if publish {
                function.publish();
            }
            self.model.insert(name, function);
        }
    }

    async fn code(&mut self, name: &'static str, content: u8, publish: bool) {
        let request = types::UpdateFunctionCodeRequest {
            function_name: Some(name.to_owned()),
            zip_file: Some(self.packages[usize::from(content)].clone()),
            publish: Some(publish),
            ..types::UpdateFunctionCodeRequest::default()
        };
        let outcome = self.world.plane.update_function_code(&request, NOW).await;
        let Some(function) = self.model.get_mut(name).filter(|function| function.is_idle()) else {
            assert!(outcome.is_err());
            return;
        };
        outcome.unwrap();
        function.change((content, function.latest.1));
        if publish {
            function.publish();
        }
    }

    async fn timeout(&mut self, name: &'static str, timeout: u8, stale: bool) {
        let revision = if stale { Some("0") } else { None };
        let change = json!({"FunctionName": name, "Timeout": timeout, "RevisionId": revision});
        let outcome = self.world.configure(change).await;
        let Some(function) = self.model.get_mut(name).filter(|function| function.is_idle() && !stale) else {
            assert!(outcome.is_err());
            return;
        };
        outcome.unwrap();
        function.change((function.latest.0, timeout));
    }

    async fn complete(&mut self, name: &'static str, ok: bool) {
        let work = self.world.plane.pending_work().into_iter().find(|work| work.version.function == name);
        let Some(function) = self.model.get_mut(name).filter(|function| !function.is_idle()) else {
            assert!(work.is_none());
            return;
        };
        let outcome = if ok { Ok(()) } else { Err(broken_zip()) };
        self.world.plane.complete(&work.unwrap(), outcome).await.unwrap();
        function.phase = match (function.phase, ok) {
            (_, true) => Phase::Ready,
            (Phase::Updating, false) => Phase::Stuck,
            (_, false) => Phase::Dead,
        };
        if ok {
            function.running = Some(function.latest);
        }
    }

    async fn publish(&mut self, name: &'static str) {
        let outcome = self.world.plane.publish_version(&publish_request(name)).await;
        let Some(function) = self.model.get_mut(name).filter(|function| function.phase == Phase::Ready) else {
            assert!(outcome.is_err());
            return;
        };
        function.publish();
        let last = function.versions.keys().next_back().map(u64::to_string);
        assert_eq!(outcome.unwrap().configuration.version, last);
    }

    async fn delete_version(&mut self, name: &'static str, number: u64) {
        let request = delete_request(name, Some(&number.to_string()));
        let outcome = self.world.plane.delete_function(&request).await;
        let function = self.model.get_mut(name);
        // A version that is not there is as good as deleted.
        assert_eq!(outcome.is_ok(), function.is_some());
        function.map(|function| function.versions.remove(&number));
    }

    fn compare(&mut self) {
        let functions = self.world.plane.functions();
        assert_eq!(functions.iter().map(|function| function.name.as_str()).collect::<Vec<_>>(), {
            self.model.keys().copied().collect::<Vec<_>>()
        });
        for function in functions {
            let model = &self.model[function.name.as_str()];
            let made = |version: &FunctionVersion| {
                let digest = version.code.digest;
                let content = self.packages.iter().position(|package| store::Digest::of(&package.0) == digest);
                (content.unwrap() as u8, version.settings.timeout_secs as u8)
            };
            assert_eq!(made(&function.latest), model.latest);
            let versions: BTreeMap<u64, Made> =
                function.versions.iter().map(|(number, version)| (*number, made(version))).collect();
            let expected = model.versions.iter().map(|(number, (made, _))| (*number, *made)).collect();
            assert_eq!(versions, expected);
            let phase = match (&function.latest.state, &function.latest.update) {
                (State::Active, UpdateStatus::InProgress) => Phase::Updating,
                (State::Active, UpdateStatus::Failed { .. }) => Phase::Stuck,
                (State::Active, _) => Phase::Ready,
                (State::Pending, _) => Phase::Creating,
                (State::Failed { .. }, _) => Phase::Dead,
            };
            assert_eq!(phase, model.phase);
            let serving = self.world.plane.resolve(&function.name, None, 0.0).unwrap().version;
            if let Some(running) = model.running {
                assert_eq!(made(&serving), running);
                assert_eq!(serving.state, State::Active);
            } else {
                assert_ne!(serving.state, State::Active);
            }
            for version in function.records() {
                let known =
                    self.revisions.entry(version.revision_id.clone()).or_insert_with(|| version.as_ref().clone());
                assert_eq!(known, version.as_ref(), "a revision id stands for two states");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn behaves_as_the_model(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let packages = ["zero", "one", "two"].map(package).to_vec();
            let world = World::new().await;
            let mut run = Run { world, model: BTreeMap::new(), revisions: HashMap::new(), packages };
            for step in &steps {
                run.step(step).await;
            }
            // After a last sweep the disk holds exactly what the functions need.
            run.world.restart().await;
            let mut needed: Vec<store::Digest> =
                run.world.plane.functions().iter().flat_map(|function| function.digests().collect::<Vec<_>>()).collect();
            needed.sort_unstable();
            needed.dedup();
            assert_eq!(run.world.blobs.list().await.unwrap(), needed);
        });
    }
}
