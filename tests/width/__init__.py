"""Tests of dsconvert.width."""
