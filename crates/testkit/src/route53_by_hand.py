"""Records at Route 53 as a person with the command line tool would see and change them: boto3 is Amazon's client."""
import json
import sys

import boto3

endpoint, key, secret, action, zone = sys.argv[1:6]
client = boto3.client("route53", endpoint_url=endpoint, region_name="us-east-1",
                      aws_access_key_id=key, aws_secret_access_key=secret)
if action == "create":
    client.create_hosted_zone(Name=zone, CallerReference="1")
    sys.exit()
zones = client.list_hosted_zones_by_name(DNSName=zone)["HostedZones"]
zone_id = zones[0]["Id"]
if action == "show":
    kind, name = sys.argv[6:8]
    sets = client.list_resource_record_sets(HostedZoneId=zone_id)["ResourceRecordSets"]
    values = [r["Value"] for s in sets if (s["Name"], s["Type"]) == (name + ".", kind) for r in s["ResourceRecords"]]
    print(json.dumps(sorted(values)))
else:
    kind, name, *values = sys.argv[6:]
    record_set = {"Name": name + ".", "Type": kind, "TTL": 77, "ResourceRecords": [{"Value": v} for v in values]}
    change = {"Action": "UPSERT", "ResourceRecordSet": record_set}
    client.change_resource_record_sets(HostedZoneId=zone_id, ChangeBatch={"Changes": [change]})
