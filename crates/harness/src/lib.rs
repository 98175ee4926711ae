//! Not shipped: real processes, clients and fixtures for whole-system tests.
