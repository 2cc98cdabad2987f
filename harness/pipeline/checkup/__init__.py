"""What ``harness doctor`` looks at: each check yields findings."""
