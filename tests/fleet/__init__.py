"""Real hosts in network namespaces: the demo and the tests of a whole fleet."""
