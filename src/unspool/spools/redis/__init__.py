"""The spool in Redis or Valkey. `spool` opens it; `redis.lua` keeps the contract."""
