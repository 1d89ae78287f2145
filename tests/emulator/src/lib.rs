//! An IoT Hub, an image server and a board, for trying twinboot on one machine.

pub mod board;
pub mod ca;
pub mod hub;
pub mod images;
