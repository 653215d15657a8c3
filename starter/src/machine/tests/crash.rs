//! A program that serves and soon dies.

use super::*;

#[test]
fn what_soon_dies_again_and_again_comes_back_ever_later() {
    let mut world = World::new(settings());
    world.pass_deadline();
    let mut waits = Vec::new();
    for deaths in 1..5 {
        // As soon as it has committed.
        world.exit_newest(256);
        assert_eq!(world.machine.crash_loop(), (deaths > 1).then_some(deaths));
        if let (0, Some(wait)) = (world.pids().len(), world.wait()) {
            waits.push(wait);
            world.pass_deadline();
        }
        world.pass_deadline();
    }
    // The interval counts from its start, which was an interval before its commit.
    assert_eq!(waits, [0.5, 1.25, 2.375]);
    assert!(world.said(
        "workers have died 4 times in a row soon after they began to serve; next start in 2.4 secs"
    ));
    // It has come back, and one that lives for an interval ends the loop.
    assert_eq!(world.machine.crash_loop(), Some(4));
    assert_eq!(world.wait(), Some(1.0));
    world.pass_deadline();
    assert_eq!(world.machine.crash_loop(), None);
    assert_eq!(world.wait(), None);
    world.exit_newest(256);
    assert_eq!(world.wait(), Some(1.0));
    world.check();
}
