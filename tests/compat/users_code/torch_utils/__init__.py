"""The package of a user's repository that its ops lie in."""
