//! The examples of NovaCron, and the README, whose programs are compiled here: this crate alone has every crate at hand.
#![doc = include_str!("../../README.md")]
