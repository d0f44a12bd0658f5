//! The screen of `shared-socket top`: [`model`] is what is known and what keys do to it, [`view`] how it looks. Both are
//! pure, so that tests drive them without a terminal.

pub mod model;
pub mod requests;
pub mod view;
