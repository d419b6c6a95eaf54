"""What benchmarks share: workloads, peers, records, and the README's section on speed."""
