-- Whose they are: the namespace of the CrawlBatch or CrawlSource in a cluster; null if they come from no cluster.

alter table batch add column namespace text;
alter table source add column namespace text;
create index batch_namespace on batch (namespace) where namespace is not null;
