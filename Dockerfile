# A static binary in an empty image. Built by `make image`, or: docker build -t packetboat .
FROM docker.io/library/rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake
WORKDIR /source
COPY . .
RUN RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --package packetboat \
        --target "$(rustc -vV | sed -n 's/^host: //p')" --target-dir /target \
    && cp /target/*/release/packetboat /packetboat

FROM scratch
COPY --from=build /packetboat /packetboat
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
USER 65532:65532
EXPOSE 2525 5587 4465 8025 9091 9092
ENTRYPOINT ["/packetboat"]
