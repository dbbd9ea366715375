"""Tests of app/tier: another gateway as the upstream."""
