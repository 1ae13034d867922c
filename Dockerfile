# A static binary in an empty image: docker build -t packetboat . (`make image` makes one without this file, and without
# a container engine.)
FROM docker.io/library/rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake
# The binary carries the list of its parts. The version is that of scripts/image.
RUN cargo install --quiet --locked cargo-auditable@0.7.7
WORKDIR /source
COPY . .
# An allocator made for pages of 4 KiB does not run on larger ones, which kernels of arm64 may have.
RUN case "$(uname -m)" in aarch64) export JEMALLOC_SYS_WITH_LG_PAGE=16 ;; esac \
    && export CFLAGS="-ffile-prefix-map=$CARGO_HOME=/cargo" \
    && CXXFLAGS="$CFLAGS" RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix $CARGO_HOME=/cargo" \
        cargo auditable build --release --locked --package packetboat \
        --target "$(rustc -vV | sed -n 's/^host: //p')" --target-dir /target \
    && strip -o /packetboat /target/*/release/packetboat \
    # The image has no loader.
    && ! readelf -lW /packetboat | grep INTERP \
    && readelf -SW /packetboat | grep '\.dep-v0'

FROM scratch
COPY --from=build /packetboat /packetboat
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
USER 65532:65532
EXPOSE 2525 5587 4465 8025 9091 9092
ENTRYPOINT ["/packetboat"]
