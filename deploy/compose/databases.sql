-- The databases and roles of compose.yaml. Passwords are for loopback only.
create role backstage login createdb password 'backstage';
create role bridge login password 'bridge';
create role catalog_reader login password 'catalog_reader';

create database catalog_bridge owner bridge;

-- Backstage makes its databases itself; this one is made before it, so that the reader's rights are there from its first table on.
-- On a server of yours grant the two tables that `catalog-bridge source grants --print` names.
create database backstage_plugin_catalog owner backstage;
\connect backstage_plugin_catalog
alter default privileges for role backstage grant select on tables to catalog_reader;
