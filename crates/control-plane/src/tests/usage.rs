//! The running count of what all functions hold is what a count of them all gives, whatever happened to them.

use proptest::prelude::*;

use super::*;
use crate::usage::Usage;

impl World {
    fn check_usage(&self) {
        let functions = self.plane.functions();
        let counted = Usage::of(functions.iter().map(AsRef::as_ref));
        assert_eq!(*self.plane.inner.usage(), counted);
        let code: u64 = functions.iter().flat_map(|f| f.records()).map(|version| version.code.unzipped_size).sum();
        let shown = self.plane.get_account_settings().account_usage.unwrap();
        assert_eq!((shown.total_code_size, shown.function_count), (Some(code as i64), Some(functions.len() as i64)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_running_count_is_right(steps in prop::collection::vec((0u8..6, 0u8..3), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for (step, which) in steps {
                // Refusals are part of it.
                let name = format!("f{which}");
                match step {
                    0 => {
                        if let Ok(accepted) = world.plane.create_function(&create_request(&name), NOW).await {
                            world.settle(&accepted, Ok(())).await;
                        }
                    }
                    1 | 2 => {
                        let content = if step == 1 { "second" } else { "a third, longer one" };
                        let request = code_request(&name, content);
                        if let Ok(accepted) = world.plane.update_function_code(&request, NOW).await
                            && let Some(work) = &accepted.work
                        {
                            let outcome = if which == 2 { Err(broken_zip()) } else { Ok(()) };
                            world.plane.complete(work, outcome).await.unwrap();
                        }
                    }
                    3 => drop(world.plane.publish_version(&publish_request(&name)).await),
                    4 => drop(world.plane.delete_function(&delete_request(&name, Some("1"))).await),
                    _ if which == 0 => world.restart().await,
                    _ => drop(world.plane.delete_function(&delete_request(&name, None)).await),
                }
                world.check_usage();
            }
        });
    }
}
