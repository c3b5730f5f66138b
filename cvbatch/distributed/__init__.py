"""Ray and this machine, for any command: sessions, resources, preflight, parallel map."""
